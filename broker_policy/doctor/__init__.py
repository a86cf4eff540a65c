"""``mas doctor``: whether an installation is in order, and what to do where it is not.

``at_rest`` looks at the folder alone, ``running`` asks what runs from it. Nothing is changed.
"""
