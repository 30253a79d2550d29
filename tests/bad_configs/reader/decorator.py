@print
class A:
    pass
