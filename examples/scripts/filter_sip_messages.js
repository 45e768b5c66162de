// Only user 101 may send messages; whoever else tries is answered "406 Not Acceptable".
//
// In javascript.conf:
//   [scripts]
//   filter=filter_sip_messages.js

function onCallRoute(msg)
{
    if (msg.route_type != "msg")
        return false;
    if (msg.caller == "101")
        return false;  // not ours to decide: the next handler finds the recipient
    Engine.output("No message from " + msg.caller + " to " + msg.called);
    msg.reason = "rejected";
    msg.retValue("-");
    return true;  // handled, and by "-" to nobody: no other handler is asked
}

// 50 comes before the users of regfile.conf, at 100.
Message.install(onCallRoute, "call.route", 50);
