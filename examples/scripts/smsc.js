// A message centre: what is sent to a user who is offline is kept in a database and answered
// "202 Accepted"; when the user registers it is delivered, and forgotten where that succeeded.
//
// In javascript.conf:
//   [scripts]
//   smsc=smsc.js
// and the account "smsc" in sqlitedb.conf, or in mysqldb.conf.

var account = "smsc";
var atOnce = 50;  // so many are fetched at a time

// ---- the database

var dbtype;  // "sqlitedb" or "mysqldb", once it has said so

// To SQLite only the mark itself is special; MySQL reads backslashes, too.
function text(value)
{
    if (value === undefined || value === null)
        return "NULL";
    value = String(value);
    return "'" + (dbtype == "mysqldb" ? value.sqlEscape() : value.sqlEscape("'")) + "'";
}

// The answered message, or null where the query failed. Each ? is the next of the values.
function query(sql, values)
{
    if (!dbtype) {
        var asked = ask("");  // an empty query asks for nothing else
        if (!asked || !asked.dbtype)
            return null;
        dbtype = asked.dbtype;
    }
    var parts = sql.split("?"), complete = parts[0];
    for (var i = 1; i < parts.length; i++)
        complete += text(values[i - 1]) + parts[i];
    return ask(complete);
}

function ask(sql)
{
    var m = new Message("database");
    m.account = account;
    m.query = sql;
    if (m.dispatch() && m.error === undefined)
        return m;
    Engine.debug(Engine.DebugWarn, "The database failed:", m.error, m.error_text);
    return null;
}

// ---- keeping

// Comes behind the users of regfile.conf, which say "offline" where a known user has no phone.
function onCallRoute(msg)
{
    if (msg.route_type != "msg")
        return false;
    msg.retValue("smsc/" + msg.called);  // a target of our own: onExecute takes it
    return true;
}

function onExecute(msg)
{
    var stored = query("INSERT INTO sms(caller,called,message,type,encoding,sent) " +
        "VALUES(?,?,?,?,?,?)", [msg.caller, msg.called, msg.xsip_body, msg["sip_content-type"],
        msg.xsip_body_encoding, dateHeader(new Date())]);
    if (!stored) {
        msg.reason = "noresource";  // 503: the sender may try again
        return false;
    }
    Engine.output("Kept a message from " + msg.caller + " to " + msg.called);
    msg.retValue("202");
    return true;
}

// ---- delivering

var busy = {};  // users whose messages are on their way: a phone registers again and again

function onRegister(msg)
{
    var user = String(msg.username), target = String(msg.data), names = [user];
    if (msg.alternatives !== undefined)  // what was sent to one of these is this user's, too
        names = names.concat(String(msg.alternatives).split(","));
    if (busy[user])
        return false;
    busy[user] = true;
    // Not in here: whoever told us of the phone should not wait for the messages.
    Engine.setTimeout(function () {
        try {
            deliverAll(user, names, target);
        } finally {
            delete busy[user];
        }
    }, 1);
    return false;
}

function deliverAll(user, names, target)
{
    var places = names.map(function () { return "?"; }).join(",");
    while (true) {
        var found = query("SELECT id,caller,message,type,encoding,sent FROM sms WHERE called IN(" +
            places + ") ORDER BY id LIMIT " + atOnce, names);
        var rows = (found && found.getRow()) || [];  // null where there are none
        for (var i = 0; i < rows.length; i++) {
            // In order, or not at all: what follows a failure waits for the next registration.
            if (!deliver(rows[i], user, target))
                return;
            if (!query("DELETE FROM sms WHERE id=?", [rows[i].id]))
                return;
        }
        if (rows.length < atOnce)
            return;
    }
}

function deliver(row, user, target)
{
    var m = new Message("msg.execute");
    m.callto = target;
    m.called = user;
    m.caller = row.caller;
    m.xsip_type = row.type;
    m.xsip_body_encoding = row.encoding;
    m.xsip_body = row.message;
    m.sip_Date = row.sent;  // when it was written
    m.wait = true;  // until the phone has answered
    m.dispatch();
    return m.code >= 200 && m.code < 300;
}

// As SIP has dates: "Fri, 27 Nov 2026 08:00:00 GMT".
function dateHeader(date)
{
    var days = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    var months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov",
        "Dec"];
    function two(number) { return (number < 10 ? "0" : "") + number; }
    return days[date.getUTCDay()] + ", " + two(date.getUTCDate()) + " " +
        months[date.getUTCMonth()] + " " + date.getUTCFullYear() + " " + two(date.getUTCHours()) +
        ":" + two(date.getUTCMinutes()) + ":" + two(date.getUTCSeconds()) + " GMT";
}

Message.install(onCallRoute, "call.route", 110, "error", "offline");
Message.install(onExecute, "msg.execute", 50, "callto", "^smsc/");
Message.install(onRegister, "user.register", 150);
