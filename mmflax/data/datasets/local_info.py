"""A tensorflow-datasets description of data that are prepared here and published nowhere.

Import this module late: tensorflow-datasets takes a while.
"""

import tensorflow_datasets as tfds


class LocalInfo(tfds.core.DatasetInfo):
    """Not looked for in tensorflow-datasets' own storage.

    The base class makes a temporary folder for what it might find there, for every builder of
    files that are not written yet, and never removes it.
    """

    def initialize_from_bucket(self) -> None:
        """Leaves the description as it is."""
