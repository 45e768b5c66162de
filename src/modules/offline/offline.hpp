// offline: the module that keeps messages for users who cannot be reached, and delivers them.
//
// A message for a known user without bindings, or whose bindings all failed for want of an answer,
// is kept (offline_store) and answered 202 Accepted when it is safe. When the user registers, his
// messages are sent to that phone one after another in the order they came, and each is removed
// when the phone has taken it. What is promised, and what is not:
// docs/modules/offline.md. Left out on purpose: messages for users who are online go
// past this, also while older ones are being delivered; who is told to wait for an hour would not
// thank us for the order.
#pragma once

#include <memory>

#include "../module.hpp"

namespace modules {

std::unique_ptr<Module> make_offline();

}  // namespace modules
