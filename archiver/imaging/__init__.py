"""Thumbnails, variants and posters of hostile media, made in limited helper processes.

recipe.py     what to make: the specification's rules, in numbers
renderer.py   the door: a few helpers, a bounded queue, deadlines
process.py    one helper, seen from our side
wire.py       how both sides speak
helper.py     the helper's own program; nothing below it is imported by the archiver itself
confine.py    what the helper takes away from itself: limits, users, rights
sandbox.py    Landlock and seccomp, through ctypes
picture.py    pictures, by libvips
footage.py    films and sound, by FFmpeg's libraries (the extra `video`)
"""
