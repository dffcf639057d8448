//! The threads of a VM, and an embedder's say in them.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// Is told of each thread that runs or serves the guest, on that thread, before it does anything else:
/// the place to pin it to a CPU, to give it a priority, or to confine it.
pub trait ThreadHooks: fmt::Debug + Send + Sync {
    /// A thread begins: `vcpuN` runs the guest, `ioN` moves the devices' data, `devN` that of device N
    /// alone, whose calls may block, `command` carries the streams of the guest's command.
    fn started(&self, thread: &str);
}

/// How threads are started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Threads(pub Option<Arc<dyn ThreadHooks>>);

impl Threads {
    /// What a new thread called `name` does first.
    pub fn prelude(&self, name: &str) -> impl FnOnce() + Send + use<> {
        let (hooks, name) = (self.0.clone(), name.to_owned());
        move || {
            if let Some(hooks) = hooks {
                hooks.started(&name);
            }
        }
    }

    /// Starts a thread.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let prelude = self.prelude(name);
        Builder::new().name(name.to_owned()).spawn(move || {
            prelude();
            body()
        })
    }
}
