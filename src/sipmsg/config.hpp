// config: the version, and the few knobs that are fixed when the header is compiled.
//
// Everything that can be decided at run time is an option of a class instead. Define a knob before
// the first include, and define it alike in every file of one program.
#pragma once

/// The version, as three numbers, as text, and as one number that compares (1.2.3 = 10203).
#define SIPMSG_VERSION_MAJOR 0
#define SIPMSG_VERSION_MINOR 1
#define SIPMSG_VERSION_PATCH 0
#define SIPMSG_VERSION "0.1.0"
#define SIPMSG_VERSION_NUMBER \
  (SIPMSG_VERSION_MAJOR * 10000 + SIPMSG_VERSION_MINOR * 100 + SIPMSG_VERSION_PATCH)

/// How many header fields one message may have; a message with more is refused as
/// `too_many_headers`. The index of a MessageView takes ten octets for each.
#ifndef SIPMSG_MAX_HEADERS
#define SIPMSG_MAX_HEADERS 128
#endif

// SIPMSG_NO_UV, when defined, leaves out everything that needs libuv: what remains is the parser,
// the writer, and the whole protocol core, driven by the caller's clock and sockets.

// SIPMSG_NO_SRV, when defined, leaves out the look-up of SRV records, for systems whose C library
// has no res_query. Servers are then found by their addresses alone.
