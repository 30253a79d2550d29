dtype = float
