__name__ = 'x'
