"""GPT-2 (124M) trained from scratch on one text file: the package behind the course notebooks.

Its folders follow the notebooks: `tokenization` (01), `model` (02), `training` (03), `results`
(04), `space` (05). `report` runs the notebooks and exports the report, `bench` measures how fast
all of it is. A folder imports only from those before it.
"""

__version__ = "2.0.0"
