#include "configuration.hpp"

namespace program {

bool load_configuration(const std::string& directory, sipmsg::Settings& settings,
                        sipmsg::Diagnostics& diagnostics) {
  if (directory.empty()) {
    settings = sipmsg::open_settings();
    return true;
  }
  return !sipmsg::load_directory(directory, settings, diagnostics);
}

void print(std::FILE* out, const sipmsg::Diagnostics& diagnostics) {
  for (const sipmsg::Diagnostic& diagnostic : diagnostics) {
    std::fprintf(out, "%s\n", to_text(diagnostic).c_str());
  }
}

}  // namespace program
