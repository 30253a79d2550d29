TENSOR_PARALLEL = 2
parallel = dict(pipeline=1, tensor=dict(size=TENSOR_PARALEL))
