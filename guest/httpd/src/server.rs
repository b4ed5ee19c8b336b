//! What all connections share.

use crate::site::Site;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, OnceCell};
use core::sync::atomic::Ordering;
use core::time::Duration;
use guest_libos::{heap, http, net, registers, task};

/// Counters of the server.
#[derive(Clone, Copy, Default)]
struct Counters {
    answers: u64,
    /// By the first digit of the status.
    classes: [u64; 6],
}

pub(crate) struct Server {
    pub(crate) site: Site,
    /// How long a request may take to arrive.
    pub(crate) idle: Duration,
    pub(crate) connections: Cell<usize>,
    counters: Cell<Counters>,
    /// The date of a second, so that it is not computed for each answer.
    date: Cell<(u64, [u8; 29])>,
    pattern: OnceCell<Vec<u8>>,
}

impl Server {
    pub(crate) fn new(idle: Duration) -> Self {
        Server {
            site: Site::new(),
            idle,
            connections: Cell::new(0),
            counters: Cell::default(),
            date: Cell::new((u64::MAX, [0; 29])),
            pattern: OnceCell::new(),
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        task::is_shutdown_requested()
    }

    pub(crate) fn count(&self, status: u16) {
        let mut counters = self.counters.get();
        counters.answers += 1;
        if let Some(class) = counters.classes.get_mut(usize::from(status / 100)) {
            *class += 1;
        }
        self.counters.set(counters);
    }

    pub(crate) fn date(&self) -> [u8; 29] {
        let second = guest_libos::time::wall() / 1_000_000_000;
        let (known, text) = self.date.get();
        if known == second {
            return text;
        }
        let text = http::date(second);
        self.date.set((second, text));
        text
    }

    /// What generated content is made of: lines of text, so that it is easy to look at.
    pub(crate) fn pattern(&self) -> &[u8] {
        self.pattern.get_or_init(|| {
            (0..64 * 1024)
                .map(|i| if i % 64 == 63 { b'\n' } else { b'a' + (i / 64 + i % 64) as u8 % 26 })
                .collect()
        })
    }

    /// (name, value) of everything that the guest says of itself.
    fn facts(&self) -> Vec<(&'static str, u64)> {
        let registers = registers();
        let counters = self.counters.get();
        let (network, executor, memory) = (net::counters(), task::statistics(), heap::usage());
        let seen = &registers.counters;
        alloc::vec![
            ("guest_id", registers.guest_id),
            ("uptime_ms", guest_libos::now() / 1_000_000),
            ("memory_bytes", registers.memory_size),
            ("heap_used_bytes", memory.used as u64),
            ("heap_grown_bytes", memory.grown as u64),
            ("connections", self.connections.get() as u64),
            ("connections_total", network.connections_total),
            ("answers", counters.answers),
            ("answers_2xx", counters.classes[2]),
            ("answers_3xx", counters.classes[3]),
            ("answers_4xx", counters.classes[4]),
            ("answers_5xx", counters.classes[5]),
            ("rx_frames", network.rx_frames),
            ("tx_frames", network.tx_frames),
            ("rx_checksum_errors", network.rx_checksum),
            ("backlog_full", network.backlog_full),
            ("exits", seen.exits.load(Ordering::Relaxed)),
            ("rx_dropped", seen.rx_dropped.load(Ordering::Relaxed)),
            ("tx_dropped", seen.tx_dropped.load(Ordering::Relaxed)),
            ("task_polls", executor.polls),
            ("rounds", executor.rounds),
            ("idles", executor.idles),
            ("looks", executor.looks),
        ]
    }

    /// The facts as JSON.
    pub(crate) fn status(&self) -> String {
        let mut text = String::from("{");
        for (n, (name, value)) in self.facts().into_iter().enumerate() {
            text += &format!("{}\"{name}\":{value}", if n == 0 { "" } else { "," });
        }
        text + "}\n"
    }

    /// The facts as a page.
    pub(crate) fn front_page(&self) -> String {
        let mut text = String::with_capacity(3072);
        text += "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Guest ";
        text += &format!("{}", registers().guest_id);
        text += "</title><link rel=\"stylesheet\" href=\"/style.css\">\
                 <link rel=\"icon\" href=\"/favicon.svg\" type=\"image/svg+xml\"></head>\n<body>\n\
                 <header><img src=\"/favicon.svg\" alt=\"\" width=\"48\" height=\"48\"><h1>Guest ";
        text += &format!("{}</h1></header>\n<table>\n", registers().guest_id);
        for (name, value) in self.facts() {
            text += &format!("<tr><th>{}</th><td>{value}</td></tr>\n", name.replace('_', " "));
        }
        text + "</table>\n<p><a href=\"/index.html\">More</a></p>\n</body>\n</html>\n"
    }
}
