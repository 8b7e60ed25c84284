//! What the hot paths of the rooms take, by criterion: `cargo bench -p rollcall-benches`, with a beginning of a name to
//! choose. `cargo test` runs each once, to see that it works.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use rollcall_benches::{cases, counted};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args();
    for case in cases() {
        let (room, path) = case.name.split_once('/').unwrap_or(("rooms", case.name));
        let mut group = criterion.benchmark_group(room);
        group.throughput(Throughput::Elements(1));
        group.bench_function(path, |bencher| {
            bencher.iter_custom(|times| {
                let mut took = Duration::ZERO;
                let mut left = times;
                while left > 0 {
                    // A fresh one where the last is used up.
                    let now = left.min(case.times);
                    let mut operation = (case.make)();
                    let began = Instant::now();
                    counted(&mut *operation, now);
                    took += began.elapsed();
                    left -= now;
                }
                took
            });
        });
        group.finish();
    }
    criterion.final_summary();
}
