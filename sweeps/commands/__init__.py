"""Commands: one file each, with what that command adds."""
