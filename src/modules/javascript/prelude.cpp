// javascript/prelude: the part of a script's surroundings that is written in JavaScript: the
// coroutines a script's work runs in, Message, Engine, and what is added to String and Number.
//
// It is one function of the object `native` (api.cpp), returns the hooks the process
// calls, and keeps all else to itself: a script can change Engine and Message, not what they do.
#include "api.hpp"

namespace modules {

const char* const script_prelude = R"javascript(function (native) {
'use strict';
var Thread = Duktape.Thread, resume = Thread.resume, leave = Thread.yield;
var hasOwn = Object.prototype.hasOwnProperty;
var STATE = Symbol('state'), TARGET = Symbol('target');
var NOTHING = Object.create(null);

function has(object, key) { return hasOwn.call(object, key); }

function hidden(object, name, value) {
  Object.defineProperty(object, name, { value: value, writable: true, configurable: true });
}

// ---- coroutines: a job runs until it has ended or waits for an id
//
// What a job leaves behind should be free of cycles, so that it goes at once and not with the next
// collection. Each function made anew would be one (with its prototype), so there are none here.

var waiting = Object.create(null);  // jobs, by the id of what they wait for
var arrived = Object.create(null);  // what came for those that wait inside of a callback

function Job(run, message, id) {
  this.run = run;
  this.message = message;
  this.id = id;  // of the message that is to be answered, 0 for none
  this.value = undefined;
  this.ended = false;
  this.thread = new Thread(runJob);
}

function runJob(job) {
  var run = job.run;
  job.value = run(job.message);
  job.ended = true;
}

function begin(job) { step(job, job); }

function step(job, value) {
  try {
    var id = resume(job.thread, value);
    if (!job.ended) {
      waiting[id] = job;
      return;
    }
  } catch (error) {
    native.complain(error);
  }
  job.thread = undefined;
  if (job.id === 0) return;
  var state = stateOf(job.message);
  native.answer(job.id, Boolean(job.value), state.value, state.changes);
}

function wait(id) {
  try {
    return leave(id);
  } catch (error) {
    // Inside a callback of sort() and the like there is no leaving.
  }
  arrived[id] = undefined;
  try {
    native.wait(id);
    return arrived[id];
  } finally {
    delete arrived[id];
  }
}

function wake(id, result) {
  var job = waiting[id];
  if (job) {
    delete waiting[id];
    step(job, result);
  } else if (id in arrived) {
    arrived[id] = result;
  }
}

// ---- parameters: texts, which read as numbers where they look like it

var traps = {
  get: function (target, key) {
    if (key === TARGET) return target;
    if (typeof key === 'symbol') return target[key];
    if (key in Message.prototype) return Message.prototype[key];
    return native.number(target[key]);
  },
  set: function (target, key, value) {
    put(target, key, value);
    return true;
  },
  has: function (target, key) { return has(target, key); },
  deleteProperty: function (target, key) {
    put(target, key, undefined);
    return true;
  },
  ownKeys: function (target) { return Object.getOwnPropertyNames(target); }
};

function put(target, key, value) {
  var absent = value === undefined || value === null;
  if (absent) delete target[key];
  else target[key] = String(value);
  target[STATE].changes[key] = absent ? undefined : target[key];
}

// `parameters` has no prototype yet, and becomes the target of the proxy that a script sees.
function makeMessage(name, value, time, parameters) {
  hidden(parameters, STATE, {
    name: name, value: value, time: time, broadcast: false, changes: Object.create(null),
    table: undefined
  });
  Object.setPrototypeOf(parameters, Message.prototype);
  return new Proxy(parameters, traps);
}

function stateOf(message) {
  var state = message && message[STATE];
  if (!state) throw new TypeError('this is no message');
  return state;
}

function targetOf(message) {
  stateOf(message);
  return message[TARGET];
}

function unixTime() { return Math.floor(Date.now() / 1000); }

// What the handlers of a message left of it.
function takeOver(state, target, result) {
  var names = Object.getOwnPropertyNames(target), key;
  state.name = result.name;
  state.value = result.value;
  state.table = result.table;
  for (var i = 0; i < names.length; i++) {
    if (!(names[i] in result.parameters)) put(target, names[i], undefined);
  }
  for (key in result.parameters) {
    if (target[key] !== result.parameters[key]) put(target, key, result.parameters[key]);
  }
}

function send(message, wanted) {
  var state = stateOf(message);
  return native.dispatch(wanted, state.name, state.value, state.time, message[TARGET]);
}

function cell(value) { return value === null ? null : native.number(value); }

function rowOf(table, index) {
  var row = table.rows[index], object = {};
  table.columns.forEach(function (name, column) { object[name] = cell(row[column]); });
  return object;
}

function columnIndex(table, column) {
  var index = table.columns.indexOf(String(column));
  if (index < 0 && /^[0-9]+$/.test(String(column))) index = Number(column);
  return index < table.columns.length ? index : -1;
}

function columnOf(table, index) {
  return table.rows.map(function (row) { return cell(row[index]); });
}

function Message(name, broadcast, parameters) {
  if (!(this instanceof Message)) throw new TypeError('Message is made by new');
  if (name === undefined) throw new TypeError('a message needs a name');
  var message = makeMessage(String(name), '', unixTime(), Object.create(null));
  stateOf(message).broadcast = Boolean(broadcast);
  if (parameters) message.copyParams(parameters);
  return message;
}

var methods = {
  name: function () { return stateOf(this).name; },
  broadcast: function () { return stateOf(this).broadcast; },
  msgTime: function () { return stateOf(this).time; },
  retValue: function (value) {
    var state = stateOf(this);
    if (arguments.length === 0) return state.value;
    state.value = value === undefined || value === null ? '' : String(value);
  },
  getParam: function (name, otherwise, autoNumber) {
    var target = targetOf(this);
    if (!has(target, name)) return otherwise;
    return autoNumber === false ? target[name] : native.number(target[name]);
  },
  setParam: function (name, value) { put(targetOf(this), String(name), value); },
  clearParam: function (name) { put(targetOf(this), String(name), undefined); },
  copyParams: function (source) {
    var target = targetOf(this);
    var from = source && source[STATE] ? source[TARGET] : source;
    Object.keys(Object(from)).forEach(function (name) {
      if (typeof from[name] !== 'function') put(target, name, from[name]);
    });
  },
  enqueue: function () { send(this, false); },
  dispatch: function () {
    var result = wait(send(this, true));
    if (!result) return false;
    takeOver(stateOf(this), this[TARGET], result);
    return result.handled;
  },
  getRow: function (index) {
    var table = stateOf(this).table;
    if (!table) return null;
    if (index === undefined) {
      return table.rows.map(function (row, number) { return rowOf(table, number); });
    }
    return has(table.rows, index) ? rowOf(table, index) : null;
  },
  getColumn: function (column) {
    var table = stateOf(this).table;
    if (!table || table.rows.length === 0) return null;
    if (column !== undefined) {
      var index = columnIndex(table, column);
      return index < 0 ? null : columnOf(table, index);
    }
    var object = {};
    table.columns.forEach(function (name, number) { object[name] = columnOf(table, number); });
    return object;
  },
  getResult: function (row, column) {
    var table = stateOf(this).table;
    if (!table || !has(table.rows, row)) return null;
    var index = columnIndex(table, column);
    return index < 0 ? null : cell(table.rows[row][index]);
  }
};
Object.keys(methods).forEach(function (name) { hidden(Message.prototype, name, methods[name]); });

// ---- handlers

var handlers = [];
var handlersById = Object.create(null);
var nobody = { run: function () { return false; } };
var lastHandler = 0;
var trackName = 'javascript';

function remove(wanted) {
  handlers = handlers.filter(function (handler) {
    if (!wanted(handler)) return true;
    native.remove(handler.id);
    delete handlersById[handler.id];
    return false;
  });
}

hidden(Message, 'install', function (run, name, priority, filter, filterValue) {
  if (typeof run !== 'function' || name === undefined || name === '') return false;
  if (handlers.length >= 1000) return false;
  var handler = {
    id: ++lastHandler, run: run, name: String(name),
    priority: priority === undefined ? 100 : Number(priority) || 0,
    filter: filter === undefined ? '' : String(filter),
    filterValue: filterValue === undefined ? '' : String(filterValue)
  };
  if (handler.filter !== '' && handler.filterValue.charAt(0) === '^' &&
      !native.isRegex(handler.filterValue.replace(/\^$/, ''))) {
    return false;
  }
  remove(function (other) { return other.run === run && other.name === handler.name; });
  native.install(handler.id, trackName, handler.name, handler.priority, handler.filter,
                 handler.filterValue);
  handlers.push(handler);
  handlersById[handler.id] = handler;
  return true;
});

hidden(Message, 'uninstall', function (name) {
  var before = handlers.length;
  remove(function (handler) { return name === undefined || handler.name === String(name); });
  return handlers.length < before;
});

hidden(Message, 'handlers', function (name) {
  var some = handlers.filter(function (handler) {
    return name === undefined || handler.name === String(name);
  });
  return some.map(function (handler) {
    return {
      name: handler.name, priority: handler.priority, filterName: handler.filter,
      filterValue: handler.filterValue, toString: function () { return handler.name; }
    };
  });
});

hidden(Message, 'trackName', function (name) {
  if (name === undefined) return trackName;
  trackName = String(name).trim();
});

// ---- Engine

var ERROR = 0, WARNING = 1, INFO = 2;
var debugName = 'javascript', debugLevel = 8;
var callbacks = Object.create(null);  // by the id of their timer

function join(list, first) {
  var texts = [];
  for (var i = first; i < list.length; i++) texts.push(String(list[i]));
  return texts.join(' ');
}

function severityOf(level) { return level <= 3 ? ERROR : level <= 6 ? WARNING : INFO; }

function setTimer(run, delay, interval) {
  if (typeof run !== 'function') throw new TypeError('a timer needs a function');
  var id = native.timer(delay, interval);
  callbacks[id] = { run: run, repeats: interval > 0 };
  return id;
}

function clearTimer(id) {
  if (!(id in callbacks)) return false;
  delete callbacks[id];
  native.clearTimer(id);
  return true;
}

// Ten seconds at most: what waits longer is better off with a timer.
function sleep(milliseconds) {
  wait(native.timer(Math.min(Number(milliseconds) || 0, 10000), 0));
}

var Engine = {
  output: function () { native.log(INFO, join(arguments, 0)); },
  debug: function (level) {
    if (Number(level) <= debugLevel) {
      native.log(severityOf(Number(level)), '<' + debugName + '> ' + join(arguments, 1));
    }
  },
  alarm: function (level) {
    native.log(Number(level) <= 3 ? ERROR : WARNING, '<' + debugName + '> alarm: ' +
               join(arguments, 1));
  },
  debugName: function (name) {
    if (name === undefined) return debugName;
    debugName = String(name);
  },
  debugLevel: function (level) {
    if (level !== undefined) debugLevel = Math.max(0, Math.min(10, Number(level) || 0));
    return debugLevel;
  },
  setTimeout: function (run, delay) { return setTimer(run, Math.max(Number(delay) || 0, 1), 0); },
  setInterval: function (run, delay) {
    var interval = Math.max(Number(delay) || 0, 1);
    return setTimer(run, interval, interval);
  },
  clearTimeout: clearTimer,
  clearInterval: clearTimer,
  sleep: function (seconds) { sleep(Number(seconds) * 1000); },
  usleep: function (microseconds) { sleep(Math.ceil(Number(microseconds) / 1000)); },
  uptime: function () { return native.uptime(); },
  runParams: function (name) {
    if (name === undefined) {
      var all = {};
      Object.keys(runParameters).forEach(function (key) { all[key] = runParameters[key]; });
      return all;
    }
    return runParameters[name];
  },
  shared: {
    get: function (name) { return native.shared(0, String(name), ''); },
    set: function (name, value) {
      if (value === undefined || value === null) native.shared(2, String(name), '');
      else native.shared(1, String(name), String(value));
    },
    inc: function (name, wrap) {
      var last = Math.floor(Number(wrap)) || 0;
      return Number(native.shared(3, String(name), String(Math.max(last, 0))));
    }
  }
};
['Fail', 'Test', 'GoOn', 'Conf', 'Stub', 'Warn', 'Mild', 'Note', 'Call', 'Info', 'All'].forEach(
    function (name, level) { Engine['Debug' + name] = level; });
var runParameters = Object.create(null);

// ---- texts

hidden(String.prototype, 'sqlEscape', function (quote) {
  var text = String(this);
  if (quote !== undefined) {
    var mark = String(quote).charAt(0);
    return mark === '' ? text : text.split(mark).join(mark + mark);
  }
  return text.replace(/\\/g, '\\\\').replace(/'/g, "''");
});

// A parameter that looks like a number is one, and a text to those who treat it as such.
['sqlEscape', 'trim', 'match', 'substr', 'substring', 'slice', 'indexOf', 'lastIndexOf', 'split',
 'charAt', 'replace', 'startsWith', 'endsWith', 'toUpperCase', 'toLowerCase'].forEach(
    function (name) {
      var method = String.prototype[name];
      hidden(Number.prototype, name, function () { return method.apply(String(this), arguments); });
    });
Object.defineProperty(Number.prototype, 'length', {
  get: function () { return String(this).length; }, configurable: true
});

var globals = new Function('return this')();
hidden(globals, 'Engine', Engine);
hidden(globals, 'Message', Message);

// ---- what the process calls

function load(run, parameters) {
  for (var name in parameters) runParameters[name] = parameters[name];
  begin(new Job(run, undefined, 0));
}

function handle(id, number, name, value, time, parameters) {
  var message = makeMessage(name, value, time, parameters);
  var handler = handlersById[number] || nobody;  // it may have been removed meanwhile
  begin(new Job(handler.run, message, id));
}

function due(id) {
  var callback = callbacks[id];
  if (!callback) return wake(id, NOTHING);
  if (!callback.repeats) delete callbacks[id];
  begin(new Job(callback.run, undefined, 0));
}

return [load, handle, function (id, handled, name, value, parameters, table) {
  wake(id, { handled: handled, name: name, value: value, parameters: parameters, table: table });
}, due];
})javascript";

}  // namespace modules
