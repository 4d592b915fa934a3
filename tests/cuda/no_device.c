/* Stands in for CUDA's driver on a machine that has the libraries and no card: the little that is called of it then. */

int cuInit(unsigned flags) { return flags == 0 ? 100 : 1; }

static int tell(const char **to, const char *text) {
    *to = text;
    return 0;
}
int cuGetErrorName(int error, const char **name) { return tell(name, error == 100 ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR"); }
int cuGetErrorString(int error, const char **text) { return tell(text, error == 100 ? "no device" : "another error"); }
