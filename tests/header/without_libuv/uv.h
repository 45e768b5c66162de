// Stands before libuv's own header in the include path where libuv must not be reached.
#error "this includes libuv, although SIPMSG_NO_UV is defined or the part stands above its line"
