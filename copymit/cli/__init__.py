"""The console program `copymit`: its verbs, and what programs with flags have in common."""
