// What the tests are run on: the parts (errors name the file one edits), or, with
// SIPMSG_TEST_SHIPPED, the header as it is shipped. SIPMSG_TEST_PART='"sipmsg/uri.hpp"' compiles a
// test against one part alone, for a quick turn while working on it.
#pragma once

#if defined(SIPMSG_TEST_SHIPPED)
#include "../../include/sipmsg.hpp"
#elif defined(SIPMSG_TEST_PART)
#include SIPMSG_TEST_PART
#else
#include "../../src/sipmsg/all.hpp"
#endif
