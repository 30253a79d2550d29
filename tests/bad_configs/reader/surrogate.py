name = '\ud800'
