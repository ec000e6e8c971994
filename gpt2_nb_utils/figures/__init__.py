"""Everything that draws: `style`, a module of figures for each notebook, `html` and `token_paint`.

Figures take plain numbers and rows, and are readable in grey: no meaning rests on colour alone.
"""
