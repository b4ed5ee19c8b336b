//! The executor with a clock that the tests move.

use super::*;
use crate::sync::{channel, oneshot, watch};
use crate::testing::advance;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::time::Duration;

fn rounds(n: usize) {
    for _ in 0..n {
        round();
    }
}

#[test]
fn tasks_run_in_turn_and_handles_give_their_output() {
    let log = Rc::new(RefCell::new(Vec::new()));
    for name in ["a", "b"] {
        let log = log.clone();
        spawn(async move {
            for n in 0..2 {
                log.borrow_mut().push((name, n));
                yield_now().await;
            }
        });
    }
    let sum = spawn(async { 20 + 22 });
    let result = Rc::new(Cell::new(0));
    let seen = result.clone();
    spawn(async move { seen.set(sum.await) });
    rounds(4);
    assert_eq!(*log.borrow(), [("a", 0), ("b", 0), ("a", 1), ("b", 1)]);
    assert_eq!(result.get(), 42);
}

#[test]
fn run_returns_what_main_does() {
    let output = run(async {
        let (send, receive) = oneshot::channel();
        spawn(async move { send.send(7).unwrap() });
        receive.await.unwrap() + 1
    });
    assert_eq!(output, 8);
}

struct Noted(Rc<Cell<u32>>);

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn aborted_tasks_are_dropped_and_detached_ones_run_on() {
    let dropped = Rc::new(Cell::new(0));
    let sleeper = |dropped: &Rc<Cell<u32>>| {
        let noted = Noted(dropped.clone());
        spawn(async move {
            let _noted = noted;
            sleep(Duration::from_secs(1)).await;
        })
    };
    let aborted = sleeper(&dropped);
    drop(sleeper(&dropped));
    let cancelled = sleeper(&dropped);
    let finished = spawn(async { 5 });
    rounds(2);
    assert_eq!(dropped.get(), 0);
    aborted.abort();
    assert!(finished.is_finished() && !cancelled.is_finished());
    let results = Rc::new(Cell::new((Some(()), None)));
    let seen = results.clone();
    spawn(async move { seen.set((cancelled.cancel().await, finished.cancel().await)) });
    rounds(3);
    assert_eq!(dropped.get(), 2);
    assert_eq!(results.get(), (None, Some(5)));
    advance(1_000_000_000);
    rounds(2);
    assert_eq!(dropped.get(), 3);
}

#[test]
fn sleeps_end_in_order_and_timeouts_cut_off() {
    let log = Rc::new(RefCell::new(Vec::new()));
    for ms in [30, 10, 20] {
        let log = log.clone();
        spawn(async move {
            sleep(Duration::from_millis(ms)).await;
            log.borrow_mut().push(ms);
        });
    }
    let results = Rc::new(Cell::new(None));
    let seen = results.clone();
    spawn(async move {
        let late = timeout(Duration::from_millis(15), sleep(Duration::from_secs(9))).await;
        let early = timeout(Duration::from_secs(9), async { 3 }).await;
        seen.set(Some((late, early)));
    });
    rounds(2);
    for _ in 0..3 {
        advance(10_000_000);
        rounds(3);
    }
    assert_eq!(*log.borrow(), [10, 20, 30]);
    assert_eq!(results.get(), Some((Err(Elapsed), Ok(3))));
}

#[test]
fn a_sleep_that_is_put_off_ends_late() {
    let done = Rc::new(Cell::new(0));
    let seen = done.clone();
    spawn(async move {
        let mut nap = sleep(Duration::from_millis(10));
        for _ in 0..5 {
            let _ = select(&mut nap, yield_now()).await;
            nap.reset(crate::time::Instant::now() + Duration::from_millis(10));
            sleep(Duration::from_millis(5)).await;
        }
        nap.await;
        seen.set(crate::now());
    });
    let start = crate::now();
    for _ in 0..100 {
        advance(1_000_000);
        rounds(4);
    }
    assert!((30_000_000..=40_000_000).contains(&(done.get() - start)), "{}", done.get() - start);
}

#[test]
fn channels_are_bounded_and_close() {
    let (send, receive) = channel(2);
    let sent = Rc::new(Cell::new(0));
    let seen = sent.clone();
    spawn(async move {
        for n in 0..5 {
            send.send(n).await.unwrap();
            seen.set(n + 1);
        }
    });
    rounds(3);
    assert_eq!(sent.get(), 2);
    let got = Rc::new(RefCell::new(Vec::new()));
    let list = got.clone();
    spawn(async move {
        while let Ok(n) = receive.recv().await {
            list.borrow_mut().push(n);
        }
        list.borrow_mut().push(99);
    });
    rounds(20);
    assert_eq!(*got.borrow(), [0, 1, 2, 3, 4, 99]);
}

#[test]
fn watchers_see_the_latest_value() {
    let (send, mut receive) = watch::channel(0);
    let got = Rc::new(RefCell::new(Vec::new()));
    let list = got.clone();
    spawn(async move {
        while let Some(value) = receive.changed().await {
            list.borrow_mut().push(value);
        }
    });
    rounds(1);
    send.send(1);
    send.send(2);
    rounds(2);
    send.send(3);
    drop(send);
    rounds(2);
    assert_eq!(*got.borrow(), [2, 3]);
}

#[test]
fn everyone_hears_of_a_stop() {
    let count = Rc::new(Cell::new(0));
    for _ in 0..100 {
        let count = count.clone();
        spawn(async move {
            shutdown_requested().await;
            count.set(count.get() + 1);
        });
    }
    drop(shutdown_requested());
    rounds(1);
    assert!(!is_shutdown_requested());
    crate::registers::control()
        .pending
        .fetch_or(crate::interrupt::STOP, core::sync::atomic::Ordering::SeqCst);
    rounds(2);
    assert_eq!(count.get(), 100);
    assert!(is_shutdown_requested());
}

/// What tasks cost. For a figure: `cargo test --release -p guest-libos -- --ignored --nocapture cost_of_tasks`.
#[test]
#[ignore = "a measurement"]
fn cost_of_tasks() {
    const TASKS: usize = 500_000;
    let start = std::time::Instant::now();
    let handles: Vec<_> = (0..TASKS).map(|_| spawn(yield_now())).collect();
    let spawned = start.elapsed();
    while !handles.iter().all(JoinHandle::is_finished) {
        rounds(TASKS / 64);
    }
    println!(
        "{TASKS} tasks: {} ns to spawn, {} ns to run twice and end",
        spawned.as_nanos() / TASKS as u128,
        (start.elapsed() - spawned).as_nanos() / TASKS as u128
    );
    let sleepers: Vec<_> =
        (0..100_000).map(|n| spawn(sleep(Duration::from_nanos(n * 7919 % 1_000_003)))).collect();
    let start = std::time::Instant::now();
    while !sleepers.iter().all(JoinHandle::is_finished) {
        advance(1_000);
        rounds(500);
    }
    println!("100000 sleepers: {} ns each", start.elapsed().as_nanos() / 100_000);
}
