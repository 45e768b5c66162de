// The other half; see linked_first.cpp.
#include "../../include/sipmsg.hpp"

using ErrorText = const char* (*)(sipmsg::ErrorCode);

ErrorText error_text_of_second_file();

ErrorText error_text_of_second_file() { return &sipmsg::error_text; }
