/* numbers.c -- the stand-in's numbers are cuDNN's: a build with CUDA does not compile where they are not. */
#ifdef WITH_CUDA
#include "tests/cudnn/numbers.h"

#include <cudnn_graph.h>

#define X(name, number) _Static_assert((int)(name) == (number), #name);
CUDNN_NUMBERS(X)
#endif
typedef int without_cuda_nothing_to_check;
