// function_ref: a callable that is lent to a function for the time of one call.
//
// Where a template would be compiled once for every caller, a function that takes a FunctionRef is
// compiled once. Left out on purpose: keeping what is lent, for which std::function is there.
#pragma once

#include <utility>

#include "config.hpp"

namespace sipmsg {
namespace detail {

template <class Signature>
class FunctionRef;

/// Lifetime: that of the callable, so it is an argument and never a member.
template <class Returned, class... Arguments>
class FunctionRef<Returned(Arguments...)> {
 public:
  template <class Callable>
  FunctionRef(const Callable& callable) : callable_(&callable), call_(call<Callable>) {}

  Returned operator()(Arguments... arguments) const {
    return call_(callable_, std::forward<Arguments>(arguments)...);
  }

 private:
  template <class Callable>
  static Returned call(const void* callable, Arguments... arguments) {
    return (*static_cast<const Callable*>(callable))(std::forward<Arguments>(arguments)...);
  }

  const void* callable_;
  Returned (*call_)(const void*, Arguments...);
};

}  // namespace detail
}  // namespace sipmsg
