"""Tables between published checkpoints' tensor names and ours; `rules` reads them both ways."""
