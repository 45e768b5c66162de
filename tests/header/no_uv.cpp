// The core alone: compiled where libuv's header cannot be reached, linked without the library.
#define SIPMSG_NO_UV
#include "../../include/sipmsg.hpp"

int main() { return sipmsg::is_token("MESSAGE") ? 0 : 1; }
