"""What can be commanded, a module a subject."""
