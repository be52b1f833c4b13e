"""Element types by the names that the file formats give them."""

import ml_dtypes
import numpy as np

# torch.<name>, as pickled beside tensors that have no storage class of their own.
TORCH = {
  name: np.dtype(name)
  for name in (
    *(
      "bool",
      "uint8",
      "int8",
      "uint16",
      "int16",
      "uint32",
      "int32",
      "uint64",
      "int64",
      "float16",
      "bfloat16",
    ),
    *("float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"),
  )
}

# torch.<name>Storage.
TORCH_STORAGE = {
  "Bool": np.bool_,
  "Byte": np.uint8,
  "Char": np.int8,
  "Short": np.int16,
  "Int": np.int32,
  "Long": np.int64,
  "Half": np.float16,
  "BFloat16": ml_dtypes.bfloat16,
  "Float": np.float32,
  "Double": np.float64,
  "ComplexFloat": np.complex64,
  "ComplexDouble": np.complex128,
  "Untyped": np.uint8,
}
