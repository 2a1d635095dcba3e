//! An async `main` beside the main thread, which some of Apple's frameworks want for themselves.
//!
//! Capsa's own virtual machines run on queues of their own and do not need it. A program that also
//! shows windows, or that hands work to the main queue, does:
//!
//! ```
//! #[apple_main::main]
//! async fn main() -> Result<(), std::io::Error> {
//!     Ok(())
//! }
//! ```
//!
//! On macOS the body runs on a runtime's thread while the main thread runs its run loop, until the
//! body has ended; elsewhere on an ordinary runtime.

use std::future::Future;

pub use apple_main_macro::{capsa_main, main};

/// What `main` becomes. Runs `body` on a multi-threaded runtime with everything enabled.
///
/// # Panics
/// Where the body does, with its message; and where the operating system gives no threads, as any
/// `main` with a runtime.
pub fn run<F, T>(body: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = T>,
    T: Send + 'static,
{
    let work = move || match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(body()),
        Err(error) => no_runtime(&error),
    };
    beside_main_thread(work)
}

#[expect(clippy::panic, reason = "a main without a runtime cannot go on")]
fn no_runtime(error: &std::io::Error) -> ! {
    panic!("the operating system gives no threads for a runtime: {error}")
}

#[cfg(not(target_os = "macos"))]
fn beside_main_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    work()
}

#[cfg(target_os = "macos")]
fn beside_main_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    use dispatch2::DispatchQueue;
    use objc2_core_foundation::CFRunLoop;

    /// Stops the run loop from within it: a stop from outside is lost on a loop that does not run
    /// yet. Also when the body panics.
    struct StopAtEnd;
    impl Drop for StopAtEnd {
        fn drop(&mut self) {
            DispatchQueue::main().exec_async(|| {
                if let Some(main) = CFRunLoop::main() {
                    main.stop();
                }
            });
        }
    }

    let thread = std::thread::Builder::new()
        .name("main body".to_owned())
        .spawn(move || {
            let _stop = StopAtEnd;
            work()
        });
    let thread = thread.unwrap_or_else(|error| no_runtime(&error));
    while !thread.is_finished() {
        // It returns when it was stopped, which somebody else may do, too.
        CFRunLoop::run();
    }
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
