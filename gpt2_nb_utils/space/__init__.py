"""The trained model for others: what notebook 05 and the command `space` do.

`export` reads the best model of a run, `hf_format` writes it as Hugging Face's `transformers` reads
it and reads it back, `card` documents it, and `folder` puts all of that beside the app (`app/`),
ready to be a Space; `rendering` fills in templates, also those of the report. `serve` starts the app
here, `screenshots` takes pictures of it, and `show` compares the two libraries and shows the results
in the notebook. The app is copied into the Space and imports nothing of this package.
"""
