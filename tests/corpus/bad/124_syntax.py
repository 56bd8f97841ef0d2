# What is no Python.
# raised: invalid syntax (predict.py, line 4)

def (
