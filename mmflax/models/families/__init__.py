"""Published models as modules: encoders, a fusion and heads joined as a family joins them.

`Family(batch, *, train) -> dict` takes the library's batch keys and gives outputs under the names
that transformers gives them. Parts are called `image_encoder`, `text_encoder` and `fusion`, as in
`VisionLanguageModel`, so that a part's parameters fit either.
"""
