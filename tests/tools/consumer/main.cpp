#include <sipmsg.hpp>

int main() { return sipmsg::is_token("MESSAGE") && uv_version() != 0 ? 0 : 1; }
