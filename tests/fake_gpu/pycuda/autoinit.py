"""What `import pycuda.autoinit` does: a context on the first GPU, until the process ends."""

from pycuda import driver

driver.init()
context = driver.Device(0).retain_primary_context()
context.push()
