x = __builtins__
