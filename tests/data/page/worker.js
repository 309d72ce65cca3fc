postMessage(42);
