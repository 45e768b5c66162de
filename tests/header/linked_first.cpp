// One half of a program of two files that both include the header. It links only where every
// function of the header is inline, and passes only where both halves share one copy of them.
#include "../../include/sipmsg.hpp"

using ErrorText = const char* (*)(sipmsg::ErrorCode);

ErrorText error_text_of_second_file();

int main() { return error_text_of_second_file() == &sipmsg::error_text ? 0 : 1; }
