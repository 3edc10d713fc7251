use super::*;
use proptest::prelude::*;
use std::fs;

/// A tree of files as the kernel would show it.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        write(root.path(), path, text);
    }
    root
}

fn write(root: &Path, path: &str, text: &str) {
    let file = root.join(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

fn cores(root: &tempfile::TempDir) -> u32 {
    Sampler::new(root.path(), 8).cores().get()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn without_a_quota_the_process_itself_is_measured() {
    let stat = |user: u64| format!("1 (a (b) c) S 1 1 1 0 -1 0 0 0 0 0 {user} 50 0 0 20 0 4 0 100 0 0");
    let root = tree(&[
        ("proc/self/cgroup", "0::/user.slice\n"),
        ("sys/fs/cgroup/user.slice/cpu.max", "max 100000\n"),
        ("proc/self/stat", &stat(100)),
    ]);
    let mut sampler = Sampler::new(root.path(), 8);
    assert_eq!(sampler.cores().get(), 8_000);
    assert_eq!(sampler.sample(SECOND).cpu_now.get(), 0);
    // 50 of 100 ticks a second: half a core.
    write(
        root.path(),
        "proc/self/stat",
        &stat(100 + procfs::ticks_per_second() / 2),
    );
    let reading = sampler.sample(SECOND);
    assert_eq!((reading.cpu_now.get(), reading.cpu_average.get()), (500, 500));
}

#[test]
fn a_quota_of_version_2_is_found_and_its_group_is_measured() {
    let root = tree(&[
        ("proc/self/cgroup", "0::/kube/pod\n"),
        ("sys/fs/cgroup/kube/pod/cpu.max", "150000 100000\n"),
        (
            "sys/fs/cgroup/kube/pod/cpu.stat",
            "usage_usec 1000000\nuser_usec 1\n",
        ),
    ]);
    let mut sampler = Sampler::new(root.path(), 8);
    assert_eq!(sampler.cores().get(), 1_500);
    sampler.sample(SECOND);
    write(
        root.path(),
        "sys/fs/cgroup/kube/pod/cpu.stat",
        "usage_usec 1250000\nuser_usec 1\n",
    );
    assert_eq!(sampler.sample(SECOND).cpu_now.get(), 250);
}

#[test]
fn the_tightest_quota_of_all_parents_binds() {
    let root = tree(&[
        ("proc/self/cgroup", "0::/a/b/c\n"),
        ("sys/fs/cgroup/a/cpu.max", "200000 100000\n"),
        ("sys/fs/cgroup/a/b/cpu.max", "50000 100000\n"),
        ("sys/fs/cgroup/a/b/c/cpu.max", "400000 100000\n"),
    ]);
    assert_eq!(cores(&root), 500);
}

#[test]
fn a_quota_of_version_1_is_found_where_accounting_is_mounted_apart() {
    let root = tree(&[
        (
            "proc/self/cgroup",
            "5:cpuacct:/docker/x\n4:cpu:/docker/x\n1:name=systemd:/docker/x\n",
        ),
        ("sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "250000\n"),
        ("sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us", "100000\n"),
        ("sys/fs/cgroup/cpuacct/docker/x/cpuacct.usage", "1000000000\n"),
    ]);
    let mut sampler = Sampler::new(root.path(), 8);
    assert_eq!(sampler.cores().get(), 2_500);
    sampler.sample(SECOND);
    write(
        root.path(),
        "sys/fs/cgroup/cpuacct/docker/x/cpuacct.usage",
        "3000000000\n",
    );
    assert_eq!(sampler.sample(SECOND).cpu_now.get(), 2_000);
}

#[test]
fn in_a_container_that_shows_the_hosts_path_the_mount_itself_counts() {
    let root = tree(&[
        ("proc/self/cgroup", "4:cpu,cpuacct:/docker/0123\n"),
        ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "100000\n"),
        ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ("sys/fs/cgroup/cpu,cpuacct/cpuacct.usage", "5\n"),
    ]);
    assert_eq!(cores(&root), 1_000);
}

#[test]
fn where_both_versions_are_mounted_the_one_with_the_cpu_controller_counts() {
    let root = tree(&[
        ("proc/self/cgroup", "4:cpu,cpuacct:/s\n0::/s\n"),
        ("sys/fs/cgroup/unified/s/cgroup.procs", "1\n"),
        ("sys/fs/cgroup/cpu,cpuacct/s/cpu.cfs_quota_us", "300000\n"),
        ("sys/fs/cgroup/cpu,cpuacct/s/cpu.cfs_period_us", "100000\n"),
        ("sys/fs/cgroup/cpu,cpuacct/s/cpuacct.usage", "5\n"),
    ]);
    assert_eq!(cores(&root), 3_000);
}

#[test]
fn no_quota_nonsense_and_quotas_above_the_machine_mean_the_machine() {
    for files in [
        vec![],
        vec![("proc/self/cgroup", "nonsense\n0::/../..\n")],
        vec![
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/cpu.max", "9900000 100000\n"),
        ],
        vec![
            ("proc/self/cgroup", "4:cpu:/\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ],
        vec![
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/cpu.max", "100000 0\n"),
        ],
    ] {
        assert_eq!(cores(&tree(&files)), 8_000, "{files:?}");
    }
}

#[test]
fn a_busy_machine_and_one_out_of_memory_are_under_pressure() {
    let root = tree(&[("proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0\n")]);
    let mut sampler = Sampler::new(root.path(), 8);
    assert_eq!(sampler.sample(SECOND).health(), Health::Good);
    write(root.path(), "proc/stat", "cpu  90 0 8 1 0 0 0 1 0 0\n");
    assert_eq!(sampler.sample(SECOND).health(), Health::Pressure);

    let root = tree(&[("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 29 kB\n")]);
    assert_eq!(
        Sampler::new(root.path(), 8).sample(SECOND).health(),
        Health::Pressure
    );
    write(
        root.path(),
        "proc/meminfo",
        "MemTotal: 1000 kB\nMemAvailable: 30 kB\n",
    );
    assert_eq!(Sampler::new(root.path(), 8).sample(SECOND).health(), Health::Good);
}

#[test]
fn what_is_near_the_limit_of_a_containers_memory_is_under_pressure_until_it_has_room_again() {
    let v2 = "sys/fs/cgroup/pod/node/";
    let root = tree(&[
        ("proc/self/cgroup", "0::/pod/node\n"),
        ("sys/fs/cgroup/pod/memory.max", "max\n"),
        (&format!("{v2}memory.max"), "1000000\n"),
        (&format!("{v2}memory.high"), "max\n"),
        (&format!("{v2}memory.current"), "849999\n"),
        (
            &format!("{v2}memory.stat"),
            "anon 1\ninactive_file 0\nactive_file 5\n",
        ),
    ]);
    let mut sampler = Sampler::new(root.path(), 8);
    let mut pressure_at = |used: &str| {
        write(root.path(), &format!("{v2}memory.current"), used);
        sampler.sample(SECOND).pressure
    };
    assert_eq!(pressure_at("849999\n"), None);
    assert_eq!(pressure_at("850000\n"), Some(Pressure::ContainerMemory));
    assert_eq!(
        pressure_at("800000\n"),
        Some(Pressure::ContainerMemory),
        "it does not come and go"
    );
    assert_eq!(pressure_at("799000\n"), None);
    assert_eq!(pressure_at("849000\n"), None);
    // Page cache that the kernel takes back first is not what it is short of.
    write(root.path(), &format!("{v2}memory.stat"), "inactive_file 200000\n");
    write(root.path(), &format!("{v2}memory.current"), "990000\n");
    let reading = sampler.sample(SECOND);
    let memory = Memory {
        used_bytes: 790_000,
        limit_bytes: 1_000_000,
    };
    assert_eq!((reading.memory, reading.health()), (Some(memory), Health::Good));
}

#[test]
fn of_all_the_groups_that_bind_the_node_the_tightest_counts() {
    let root = tree(&[
        ("proc/self/cgroup", "7:memory:/slice/pod/node\n3:cpu,cpuacct:/\n"),
        (
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            "9223372036854771712\n",
        ),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "5000000\n"),
        (
            "sys/fs/cgroup/memory/slice/pod/memory.limit_in_bytes",
            "2000000\n",
        ),
        (
            "sys/fs/cgroup/memory/slice/pod/memory.usage_in_bytes",
            "1900000\n",
        ),
        (
            "sys/fs/cgroup/memory/slice/pod/memory.stat",
            "inactive_file 900000\ntotal_inactive_file 100000\n",
        ),
        (
            "sys/fs/cgroup/memory/slice/pod/node/memory.limit_in_bytes",
            "1000000\n",
        ),
        (
            "sys/fs/cgroup/memory/slice/pod/node/memory.usage_in_bytes",
            "500000\n",
        ),
        ("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 800 kB\n"),
    ]);
    let reading = Sampler::new(root.path(), 8).sample(SECOND);
    assert_eq!(
        reading.memory,
        Some(Memory {
            used_bytes: 1_800_000,
            limit_bytes: 2_000_000
        })
    );
    assert_eq!(reading.pressure, Some(Pressure::ContainerMemory));
    // What may be planned with is the least limit, however much of it is in use.
    assert_eq!(memory::limit_of_container(root.path()), Some(1_000_000));
    // Slowed down by the kernel at `high` comes before being killed at `max`.
    let root = tree(&[
        ("proc/self/cgroup", "0::/\n"),
        ("sys/fs/cgroup/memory.high", "1000\n"),
        ("sys/fs/cgroup/memory.max", "2000\n"),
        ("sys/fs/cgroup/memory.current", "900\n"),
    ]);
    let reading = Sampler::new(root.path(), 8).sample(SECOND);
    assert_eq!(reading.memory.map(|memory| memory.limit_bytes), Some(1_000));
    assert_eq!(memory::limit_of_container(root.path()), Some(1_000));
    // Without a limit there is only the machine.
    let root = tree(&[
        ("proc/self/cgroup", "0::/\n"),
        ("sys/fs/cgroup/memory.max", "max\n"),
        ("sys/fs/cgroup/memory.current", "900\n"),
        ("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 800 kB\n"),
    ]);
    let reading = Sampler::new(root.path(), 8).sample(SECOND);
    assert_eq!(reading.memory.map(|memory| memory.limit_bytes), Some(1_024_000));
    assert_eq!(memory::limit_of_container(root.path()), None);
    assert_eq!(reading.health(), Health::Good);
}

#[test]
fn this_very_machine_can_be_read() {
    let mut sampler = Sampler::new(Path::new("/"), 2);
    let reading = sampler.sample(SECOND);
    assert!(reading.memory_bytes > 1 << 20);
    assert!(
        reading.fds.used > 2 && reading.fds.limit > reading.fds.used,
        "{:?}",
        reading.fds
    );
}

#[test]
fn after_one_half_life_an_old_value_counts_half() {
    let mut average = MovingAverage::new(HALF_LIFE);
    assert!((average.add(1_000.0, SECOND) - 1_000.0).abs() < 1e-9);
    assert!((average.add(0.0, HALF_LIFE) - 500.0).abs() < 1e-9);
}

proptest! {
    #[test]
    fn irregular_samples_mean_the_same_as_regular_ones(
        spans in prop::collection::vec((0.0_f64..8_000.0, prop::collection::vec(1_u64..5_000, 1..6)), 1..20),
    ) {
        let (mut coarse, mut fine) = (MovingAverage::new(HALF_LIFE), MovingAverage::new(HALF_LIFE));
        for (value, parts) in spans {
            let whole = coarse.add(value, Duration::from_millis(parts.iter().sum()));
            let mut split = whole;
            for part in parts {
                split = fine.add(value, Duration::from_millis(part));
            }
            prop_assert!((whole - split).abs() < 1e-6 * (1.0 + whole.abs()), "{whole} {split}");
        }
    }

    #[test]
    fn an_average_stays_between_the_samples(samples in prop::collection::vec((0.0_f64..8_000.0, 0_u64..100_000), 1..50)) {
        let mut average = MovingAverage::new(HALF_LIFE);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for (value, ms) in samples {
            (low, high) = (low.min(value), high.max(value));
            let now = average.add(value, Duration::from_millis(ms));
            prop_assert!(now >= low - 1e-9 && now <= high + 1e-9);
        }
    }
}
