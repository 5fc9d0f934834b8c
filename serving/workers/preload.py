"""What the process that workers are forked from imports once, for all of them: its memory is shared, copied on write.

scikit-learn is among it: most models need it, and a worker that is started again has its models sooner. What fewer need
(PyTorch, Feast, onnxruntime) is imported by the worker that needs it. Nothing here may start a thread of Python's: a fork
would not have it.
"""

import gc

from serving.slim import skops_io

skops_io()  # first: it looks through every module there is, for each of hundreds of functions

import serving.app  # noqa: E402
import serving.runtimes.sklearn  # noqa: E402, F401

gc.freeze()  # a collection would write to every object's header, and copy what is shared
