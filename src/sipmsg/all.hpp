// all: the table of contents. Each part is a chapter and uses only chapters above it.
//
// tools/amalgamate.py joins the parts in this order into include/sipmsg.hpp, and refuses a part
// that includes a later one or is not listed here. The order has a meaning, so it is not sorted.
#pragma once

// clang-format off
#include "config.hpp"       // the version, and the few knobs that are fixed at compile time
#include "error.hpp"        // the one list of errors; a value or an error
#include "function_ref.hpp" // a callable lent for one call
#include "text.hpp"         // characters, case, tokens, quoted strings, numbers, escapes
#include "encoding.hpp"     // any octets as text: base64, hexadecimal
#include "uri.hpp"          // sip, sips and tel URIs: parse, print, compare, address-of-record
#include "address.hpp"      // numeric IP addresses, transports, the flow a message came over
#include "header.hpp"       // typed headers: Via, From, To, Contact, CSeq and the rest
#include "message.hpp"      // one message: parsed in one pass over borrowed bytes, or owned
#include "stream.hpp"       // where a message begins and ends on TCP; keep-alive
#include "writer.hpp"       // new requests and responses; forwarding as a list of edits
#include "content.hpp"      // what a body says: text, CPIM, is-composing, delivery notices
#include "hash.hpp"         // MD5, SHA-256, SHA-512-256
#include "digest.hpp"       // who sent it: challenges, credentials, nonces
#include "ini.hpp"          // Yate's configuration grammar, every value with file and line
#include "settings.hpp"     // the keys of the configuration files, their meaning and defaults
#include "pool.hpp"         // memory that is used again: keyed index, slabs, blocks
#include "timer.hpp"        // deadlines in queues by duration, in anybody's time
#include "registrar.hpp"    // who can be reached where, and until when
#include "parameters.hpp"   // a message as handlers see it, by name; what they change
#include "routing.hpp"      // users, alternatives, and the chain of handlers that decides
#include "access.hpp"       // whose domains, who sent it, and may he speak under that name
#include "alteration.hpp"   // what handlers' changes make of a message and its answer
#include "transaction.hpp"  // one request and its answers, sent again until they arrive
#include "login.hpp"        // a client's side of the password question
#include "outgoing.hpp"     // a request to be sent, and what became of it
#include "locate.hpp"       // where a URI's host is: SRV records, addresses, in the order to be tried
#include "agent.hpp"        // the two ends: sends requests, receives them, answers
#include "registration.hpp" // a client that stays registered
#include "relay.hpp"        // one MESSAGE to every binding, and the best answer back
#include "proxy.hpp"        // the server's decisions: register, relay, answer, refuse

// Below this line the parts see libuv; SIPMSG_NO_UV leaves them out.
#ifndef SIPMSG_NO_UV
#include "loop.hpp"         // handles that close cleanly, the clock, the one timer
#include "files.hpp"        // whole files, read, and replaced in one step
#include "udp.hpp"          // datagrams in batches
#include "tcp.hpp"          // listeners, connections, reuse, back-pressure
#include "transport.hpp"    // all sockets of one server: what goes out through which
#include "offload.hpp"      // work on the thread pool, answers in order
#include "dns.hpp"          // names looked up by the system, in the pool
#include "endpoint.hpp"     // Endpoint: sends and receives messages
#include "server.hpp"       // Server: an Endpoint with registrar, routing and configuration
#endif
// clang-format on
