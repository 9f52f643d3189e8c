"""Pictures of what is archived: by which recipes they are made, by whom, and how they are kept.

recipes.py      which of the many sizes that can be asked for are made, and their names
maker.py        one picture: its source, a helper's work, and the rows that keep it
background.py   the standard sizes of all that is new, before anybody asks
"""
