MODE = '2D'.lower()
