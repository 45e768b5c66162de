#include "configuration.hpp"

namespace program {

bool load_configuration(const std::string& directory, sipmsg::Settings& settings,
                        modules::Modules& extensions, sipmsg::Diagnostics& diagnostics) {
  if (directory.empty()) {
    settings = sipmsg::open_settings();
    return true;
  }
  const bool usable = !sipmsg::load_directory(directory, settings, diagnostics);
  return extensions.load(directory, settings, diagnostics) && usable;
}

void print(std::FILE* out, const sipmsg::Diagnostics& diagnostics) {
  for (const sipmsg::Diagnostic& diagnostic : diagnostics) {
    std::fprintf(out, "%s\n", to_text(diagnostic).c_str());
  }
}

}  // namespace program
