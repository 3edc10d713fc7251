//! The cgroups of this process and their CPU quota, version 1, version 2, or both mounted side by side.

use std::fs;
use std::path::{Path, PathBuf};
use usher_shared::quantity::Millicores;

/// A quota, and where its use is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Quota {
    pub(super) cores: Millicores,
    usage: Usage,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Usage {
    /// Version 1: `cpuacct.usage`, in nanoseconds.
    V1(PathBuf),
    /// Version 2: `usage_usec` in `cpu.stat`.
    V2(PathBuf),
}

impl Quota {
    /// CPU time that the group has used, in microseconds.
    pub(super) fn used_us(&self) -> Option<u64> {
        match &self.usage {
            Usage::V1(file) => read_number(file).map(|nanos| nanos / 1000),
            Usage::V2(file) => {
                let text = fs::read_to_string(file).ok()?;
                let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
                line.trim().parse().ok()
            }
        }
    }
}

/// A cgroup that this process is in, or one above it.
pub(super) struct Group {
    pub(super) version: Version,
    pub(super) path: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// One line of `/proc/self/cgroup`: where this process is in one hierarchy.
struct Membership<'a> {
    version: Version,
    controllers: &'a str,
    path: &'a str,
}

fn memberships(text: &str) -> impl Iterator<Item = Membership<'_>> {
    text.lines().filter_map(|line| {
        // cgroups(7): hierarchy-ID:controller-list:cgroup-path.
        let mut parts = line.splitn(3, ':');
        let (hierarchy, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Membership {
            version: if hierarchy == "0" {
                Version::V2
            } else {
                Version::V1
            },
            controllers,
            path,
        })
    })
}

/// Every group that binds this process in the hierarchies of this controller, parents included. Version 2
/// says nothing of which controllers a group has; there its files tell.
pub(super) fn groups(root: &Path, controller: &str) -> Vec<Group> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mount = root.join("sys/fs/cgroup");
    let mut groups = Vec::new();
    for one in memberships(&text) {
        let mounts = match one.version {
            Version::V2 => vec![mount.clone(), mount.join("unified")],
            Version::V1 if one.controllers.split(',').any(|name| name == controller) => {
                vec![mount.join(one.controllers), mount.join(controller)]
            }
            Version::V1 => continue,
        };
        for mount in mounts {
            groups.extend(upwards(&mount, one.path).map(|path| Group {
                version: one.version,
                path,
            }));
        }
    }
    groups
}

/// The tightest quota among the process's groups and their parents. A parent's quota binds its
/// children, whatever theirs say.
pub(super) fn tightest_quota(root: &Path) -> Option<Quota> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mount = root.join("sys/fs/cgroup");
    let mut quotas = Vec::new();
    for one in memberships(&text) {
        if one.version == Version::V2 {
            for mount in [mount.clone(), mount.join("unified")] {
                quotas.extend(upwards(&mount, one.path).filter_map(|group| quota_v2(&group)));
            }
        } else if one.controllers.split(',').any(|controller| controller == "cpu") {
            for name in [one.controllers, "cpu,cpuacct", "cpu"] {
                let groups = upwards(&mount.join(name), one.path);
                quotas.extend(groups.filter_map(|group| quota_v1(&mount, &group, one.path)));
            }
        }
    }
    quotas.into_iter().min_by_key(|quota| quota.cores)
}

/// The group at `path` below `mount` and its parents up to the mount. Inside a container the path
/// may be the host's and not exist here; the mount itself is the container's group then.
fn upwards(mount: &Path, path: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let relative = path.trim_start_matches('/').to_owned();
    // `..` in a path means a group outside of this namespace, which cannot be read.
    let readable = !relative.split('/').any(|part| part == "..");
    let group = if readable {
        mount.join(relative)
    } else {
        mount.to_owned()
    };
    let mount = mount.to_owned();
    let mut next = Some(group);
    std::iter::from_fn(move || {
        let group = next.take()?;
        if group != mount {
            next = group.parent().map(Path::to_owned);
        }
        Some(group)
    })
}

fn quota_v2(group: &Path) -> Option<Quota> {
    let text = fs::read_to_string(group.join("cpu.max")).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let quota: u64 = fields.next()?.parse().ok()?; // `max`: none
    let period: u64 = fields.next()?.parse().ok()?;
    Some(Quota {
        cores: cores(quota, period)?,
        usage: Usage::V2(group.join("cpu.stat")),
    })
}

fn quota_v1(mount: &Path, group: &Path, path: &str) -> Option<Quota> {
    let quota = read_number(&group.join("cpu.cfs_quota_us"))?; // -1: none
    let period = read_number(&group.join("cpu.cfs_period_us"))?;
    // The accounting may be mounted apart from the quota.
    let beside = group.join("cpuacct.usage");
    let apart = || upwards(&mount.join("cpuacct"), path).map(|group| group.join("cpuacct.usage"));
    let usage = std::iter::once(beside)
        .chain(apart())
        .find(|file| file.exists())?;
    Some(Quota {
        cores: cores(quota, period)?,
        usage: Usage::V1(usage),
    })
}

fn cores(quota: u64, period: u64) -> Option<Millicores> {
    let cores = quota.checked_mul(1000)?.checked_div(period)?;
    (cores > 0).then(|| Millicores::clamped(cores))
}

pub(super) fn read_number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}
