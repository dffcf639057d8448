//! A thread that runs an event loop, and the handle by which others give it work.
//!
//! Everything that moves data runs on such a thread: the sessions of virtio devices, the console's
//! input. A task is owned by the loop from [`IoHandle::add`] to [`IoHandle::remove`]; nobody else
//! touches it in between, so tasks need no locks.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use event_manager::{
    EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};
use thiserror::Error;

/// What an I/O thread runs: reacts to descriptors, tolerates spurious events.
pub type IoTask = Box<dyn MutEventSubscriber + Send>;

/// Names a task of an I/O thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskId(SubscriberId);

/// What can go wrong with an I/O thread.
#[derive(Debug, Error)]
pub enum IoError {
    /// The loop could not be made, or refused a request; most often there are no descriptors left.
    #[error("I/O event loop: {0}")]
    Loop(#[from] event_manager::Error),
    /// The thread could not be started.
    #[error("cannot start I/O thread: {0}")]
    Spawn(#[source] io::Error),
    /// The thread panicked: a bug of mvm's.
    #[error("I/O thread panicked: {0}")]
    Panicked(String),
}

/// A loop that is being filled and has no thread yet: its first tasks need not be handed over to one, which
/// would take two wake-ups each.
pub struct PreparedIo {
    manager: EventManager<IoTask>,
    endpoint: RemoteEndpoint<IoTask>,
}

/// A running I/O thread. Dropping it ends the loop, drops the tasks on their own thread, and joins.
pub struct IoThread {
    endpoint: RemoteEndpoint<IoTask>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Gives work to an I/O thread from any other thread.
#[derive(Clone)]
pub struct IoHandle(Way);

/// How a handle reaches its loop.
#[derive(Clone)]
enum Way {
    Thread(RemoteEndpoint<IoTask>),
    #[cfg(any(test, feature = "testing"))]
    Loop(IoLoop),
}

/// The loop without a thread, for tests that must go the same way each time: it runs in [`turn`](Self::turn).
/// Clones are the same loop.
#[cfg(any(test, feature = "testing"))]
#[derive(Clone)]
pub struct IoLoop(Arc<std::sync::Mutex<EventManager<IoTask>>>);

impl PreparedIo {
    /// A loop of no tasks.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new() -> Result<Self, IoError> {
        // Tasks are few; the default of 256 pending events would only be memory touched for nothing.
        let manager = EventManager::new_with_capacity(32)?;
        let endpoint = manager.remote_endpoint();
        Ok(Self { manager, endpoint })
    }

    /// A handle to give work to the thread to come. Whoever uses it waits until there is one.
    #[must_use]
    pub fn handle(&self) -> IoHandle {
        IoHandle(Way::Thread(self.endpoint.clone()))
    }

    /// Lets the loop own `task`, and watches its descriptors from the start.
    pub fn add(&mut self, task: IoTask) {
        self.manager.add_subscriber(task);
    }

    /// Starts a thread called `name`, which does `first` before anything else. If its loop fails, which
    /// takes a broken host or a bug, `failed` is told, once, and the thread ends.
    ///
    /// # Errors
    /// The thread could not be made. The loop is gone, and whoever waits for it is told so.
    pub fn start(
        self,
        name: &str,
        first: impl FnOnce() + Send + 'static,
        failed: impl FnOnce(IoError) + Send + 'static,
    ) -> Result<IoThread, IoError> {
        let Self {
            mut manager,
            endpoint,
        } = self;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let body = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                first();
                while !stopped.load(Ordering::Acquire) {
                    manager.run()?;
                }
                drop(manager);
                Ok(())
            }));
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed(IoError::Loop(error)),
                Err(panic) => failed(IoError::Panicked(panic_message(panic.as_ref()))),
            }
        };
        let thread = Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(IoError::Spawn)?;
        Ok(IoThread {
            endpoint,
            stop,
            thread: Some(thread),
        })
    }
}

impl IoThread {
    /// Starts a thread called `name` whose loop has no tasks.
    ///
    /// # Errors
    /// The loop or the thread could not be made.
    pub fn spawn(
        name: &str,
        failed: impl FnOnce(IoError) + Send + 'static,
    ) -> Result<Self, IoError> {
        PreparedIo::new()?.start(name, || (), failed)
    }

    /// A handle to give work to this thread.
    #[must_use]
    pub fn handle(&self) -> IoHandle {
        IoHandle(Way::Thread(self.endpoint.clone()))
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Fails only if the loop is gone already.
        let _ = self.endpoint.kick();
        if let Some(thread) = self.thread.take() {
            // A panic was reported through `failed`.
            let _ = thread.join();
        }
    }
}

impl IoHandle {
    /// Lets the loop own `task`. Returns once it watches the task's descriptors. Must not be called
    /// from the loop itself.
    ///
    /// # Errors
    /// The loop is gone.
    pub fn add(&self, task: IoTask) -> Result<TaskId, IoError> {
        self.call(move |ops| Ok(TaskId(ops.add_subscriber(task))))
    }

    /// Takes a task out of the loop and drops it, on the loop's thread. Returns once that is done. Must
    /// not be called from the loop itself.
    ///
    /// # Errors
    /// The loop is gone, or has no such task.
    pub fn remove(&self, task: TaskId) -> Result<(), IoError> {
        self.call(move |ops| {
            drop(ops.remove_subscriber(task.0)?);
            Ok(())
        })
    }

    /// Does `work` on the loop.
    fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn SubscriberOps<Subscriber = IoTask>) -> Result<T, IoError>
        + Send
        + 'static,
    ) -> Result<T, IoError> {
        match &self.0 {
            Way::Thread(endpoint) => endpoint.call_blocking(work),
            #[cfg(any(test, feature = "testing"))]
            Way::Loop(own) => work(&mut *own.manager()),
        }
    }
}

#[cfg(any(test, feature = "testing"))]
impl IoLoop {
    /// A loop of no tasks.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new() -> Result<Self, IoError> {
        let manager = EventManager::new_with_capacity(32)?;
        Ok(Self(Arc::new(std::sync::Mutex::new(manager))))
    }

    /// A handle to give work to this loop.
    #[must_use]
    pub fn handle(&self) -> IoHandle {
        IoHandle(Way::Loop(self.clone()))
    }

    /// Lets the tasks have their events; how many there were.
    ///
    /// # Errors
    /// The loop failed.
    pub fn turn(&self) -> Result<usize, IoError> {
        Ok(self.manager().run_with_timeout(0)?)
    }

    fn manager(&self) -> std::sync::MutexGuard<'_, EventManager<IoTask>> {
        let manager = self.0.lock();
        manager.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(any(test, feature = "testing"))]
impl fmt::Debug for IoLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoLoop").finish_non_exhaustive()
    }
}

/// The text of a panic, as far as it has one.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

impl fmt::Debug for PreparedIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedIo").finish_non_exhaustive()
    }
}

impl fmt::Debug for IoThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoThread")
            .field("thread", &self.thread)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for IoHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoHandle").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_manager::{EventOps, Events};
    use std::sync::mpsc::{Sender, channel};
    use vmm_sys_util::epoll::EventSet;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    struct Echo {
        event: EventFd,
        seen: Sender<&'static str>,
        panics: bool,
    }

    impl MutEventSubscriber for Echo {
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.event, EventSet::IN)).unwrap();
        }
        fn process(&mut self, _events: Events, _ops: &mut EventOps) {
            self.event.read().unwrap();
            assert!(!self.panics, "told to");
            self.seen.send("event").unwrap();
        }
    }

    impl Drop for Echo {
        fn drop(&mut self) {
            let _ = self.seen.send("dropped");
        }
    }

    fn echo(panics: bool) -> (EventFd, Echo, std::sync::mpsc::Receiver<&'static str>) {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let (seen, receiver) = channel();
        (
            event.try_clone().unwrap(),
            Echo {
                event,
                seen,
                panics,
            },
            receiver,
        )
    }

    #[test]
    fn a_task_gets_its_events_until_it_is_removed() {
        let thread = IoThread::spawn("io", |error| panic!("{error}")).unwrap();
        let (event, task, seen) = echo(false);
        let id = thread.handle().add(Box::new(task)).unwrap();
        event.write(1).unwrap();
        assert_eq!(seen.recv(), Ok("event"));
        thread.handle().remove(id).unwrap();
        assert_eq!(
            seen.try_recv(),
            Ok("dropped"),
            "remove returns after the drop"
        );
        assert!(matches!(thread.handle().remove(id), Err(IoError::Loop(_))));
    }

    #[test]
    fn dropping_the_thread_drops_its_tasks() {
        let (_event, task, seen) = echo(false);
        let thread = IoThread::spawn("io", |error| panic!("{error}")).unwrap();
        let handle = thread.handle();
        handle.add(Box::new(task)).unwrap();
        drop(thread);
        assert_eq!(seen.try_recv(), Ok("dropped"));
        let (_event, late, _seen) = echo(false);
        assert!(
            handle.add(Box::new(late)).is_err(),
            "a dead loop refuses work"
        );
    }

    #[test]
    fn tasks_that_were_there_before_the_thread_get_their_events() {
        let (event, task, seen) = echo(false);
        let mut prepared = PreparedIo::new().unwrap();
        prepared.add(Box::new(task));
        event.write(1).unwrap();
        assert!(seen.try_recv().is_err(), "nothing runs yet");
        let (first, began) = channel();
        let first = move || first.send("first").unwrap();
        let thread = prepared.start("io", first, |error| panic!("{error}"));
        assert_eq!(began.recv(), Ok("first"));
        assert_eq!(seen.recv(), Ok("event"));
        drop(thread.unwrap());
        assert_eq!(seen.recv(), Ok("dropped"));
    }

    #[test]
    fn who_waits_for_a_thread_that_never_comes_is_told() {
        let prepared = PreparedIo::new().unwrap();
        let handle = prepared.handle();
        let (_event, task, _seen) = echo(false);
        let waits = std::thread::spawn(move || handle.add(Box::new(task)));
        drop(prepared);
        assert!(waits.join().unwrap().is_err());
    }

    #[test]
    fn a_panic_is_reported_and_does_not_spread() {
        let (failed, failure) = channel();
        let thread = IoThread::spawn("io", move |error| failed.send(error).unwrap()).unwrap();
        let (event, task, _seen) = echo(true);
        thread.handle().add(Box::new(task)).unwrap();
        event.write(1).unwrap();
        assert!(matches!(failure.recv(), Ok(IoError::Panicked(text)) if text.contains("told to")));
    }
}
