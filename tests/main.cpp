// The one file of a test program that holds doctest's implementation.
//
// Test cases in the suite "long" do in bulk what others do once: a million octets, a table that is
// full, a day of traffic. Under valgrind that takes minutes and shows nothing else, so they are
// left out where SIPMSG_TEST_BRIEFLY is set.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdlib>

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  if (std::getenv("SIPMSG_TEST_BRIEFLY") != nullptr) {
    context.addFilter("test-suite-exclude", "long");
  }
  return context.run();
}
