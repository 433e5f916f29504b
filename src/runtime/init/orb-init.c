/*
 * orb-init: the only program of orb that is not TypeScript, because it has to be what a Bun process cannot be: a single
 * thread that forks between namespaces, and a pid 1 that costs some 100 KB. Static, no dependency.
 *
 *   orb-init boot  [options]            a computer's namespaces, its root, and its pid 1
 *   orb-init agent [options] -- ARGV    an agent in a pid namespace nested in its computer's
 *   orb-init exec  [options] -- ARGV    a command in a computer, beside the agent
 *   orb-init criu  [options] -- ARGV [-- PAGES]
 *                                       criu, seen from a computer's pid namespace; PAGES is the page daemon that a lazy
 *                                       restore needs: once it listens, ARGV goes on beyond reading its GATE; when ARGV
 *                                       has succeeded, `done` is printed, and the end is the daemon's
 *   orb-init view  --keep PATH ...      the host's mounts without those of computers: prints `ready`, stays until its input ends
 *   orb-init warm DIR                   has the kernel read the files in DIR
 *   orb-init flush DIR [MOUNT]          puts the files in DIR on stable storage, and leaves the disk to others meanwhile;
 *                                       before, all of the file system that is mounted at MOUNT
 *   orb-init pid1[=LIFE] ARGV           pid 1 of an agent; run from within the computer
 *
 * Options (paths are the host's unless they are said to be the computer's):
 *   --cgroup FILE    a cgroup.procs file to join, repeatable
 *   --net FILE       network namespace to enter
 *   --init PID       host pid of the computer's pid 1, whose namespaces are entered
 *   --root DIR       root of the computer; --host NAME: its host name (boot)
 *   --dev DIR        /dev of all computers (boot), which is read-only (view)
 *   --mask PATH      file of the computer's /proc to hide under /dev/null, repeatable
 *   --shm BYTES      size of /dev/shm; for criu: an empty one is made ready at /run/shm
 *   --seccomp FILE   BPF program for everything that runs inside
 *   --pid1 PATH      this program as the computer sees it (agent)
 *   --life NUMBER    goes into the agent's exit file: tells one start from another, whatever the clock does (agent)
 *   --cwd DIR        working directory, the computer's
 *   --env FD         descriptor that holds the environment, NUL separated
 *   --kdat FILE      where criu's probe of the kernel is kept between runs (criu)
 *   --result FILE    gets criu's exit code, also when orb has died meanwhile (criu)
 *   --drained FILE   gets the page daemon's (criu)
 *   --view FILE      mount namespace of `orb-init view`; --root DIR: the computer's root, the one that criu sees (criu)
 *   --keep PATH      what is mounted on the way there, and below it, stays, repeatable (view)
 *   --tty FD         the command gets a terminal of the computer; standard input, a socket, is the other side of that, and
 *                    its sizes come through FD, the first one at once (exec)
 *
 * Failures are one line on standard error and exit code 125.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define EXIT_SETUP 125        /* namespaces could not be made or entered */
#define MAX_LIST 32           /* of --cgroup and --mask each */
#define LOG_LINE_BYTES 16384  /* longer lines are split (contract, limits) */
#define LOG_FILE_BYTES (10L * 1024 * 1024)
#define PARTIAL_LINE_MS 400   /* an unfinished line becomes readable after this */
#define OPEN_FILES 1048576    /* RLIMIT_NOFILE inside */
#define OOM_SPARE "-999"      /* a computer without its pid 1 is gone: the OOM killer takes everything else first */
#define PTYS_MAX "256"        /* of one computer: the kernel has 4096 for all of them */
#define FRESH_SHM "/run/shm"
#define GATE "/run/gate"      /* a configuration file for criu, which reads it when its libraries are loaded */
#define RESULT_BYTES 5        /* an exit code and the end of the line */
#define STATUS_FD 8           /* the page daemon says here that it listens */
#define LOG_DIR "/var/log/orb"
#define LOG_FILE LOG_DIR "/agent.log"
#define EXIT_FILE "/.orb/exit"

struct options {
	const char *cgroup[MAX_LIST], *mask[MAX_LIST], *keep[MAX_LIST];
	int cgroups, masks, keeps;
	const char *net, *root, *dev, *host, *shm, *seccomp, *pid1, *life, *cwd, *kdat, *result, *drained, *view;
	int init, env, tty;
	char **argv, **pages;
};

/* linux/mount.h and linux/fcntl.h, which musl's own headers do not go with. */
#define TREE_CLONE 1          /* OPEN_TREE_CLONE */
#define TREE_RECURSIVE 0x8000 /* AT_RECURSIVE */
#define TREE_ITSELF 4         /* MOVE_MOUNT_F_EMPTY_PATH */
#define PROC_MAGIC 0x9fa0     /* linux/magic.h */
#define EMPTY_JOURNAL _IOW('f', 43, uint32_t) /* EXT4_IOC_CHECKPOINT */
#define MOUNT_READ_ONLY 1     /* MOUNT_ATTR_RDONLY */

struct mount_attributes {
	uint64_t set, clear, propagation, userns;
};

static void die(const char *format, ...)
{
	int error = errno;
	va_list list;
	va_start(list, format);
	vdprintf(2, format, list);
	va_end(list);
	dprintf(2, ": %s\n", strerror(error));
	_exit(EXIT_SETUP);
}

/* ---- options ------------------------------------------------------------------------------------------------------ */

static void push(const char **list, int *length, const char *value)
{
	if (*length == MAX_LIST) {
		errno = E2BIG;
		die("too many options");
	}
	list[(*length)++] = value;
}

static void parse(struct options *o, char **argv)
{
	o->env = o->tty = -1;
	for (; *argv; argv++) {
		char *name = *argv;
		if (!strcmp(name, "--")) {
			o->argv = argv + 1;
			return;
		}
		char *value = *++argv;
		if (!value) {
			errno = EINVAL;
			die("%s needs a value", name);
		}
		if (!strcmp(name, "--cgroup")) push(o->cgroup, &o->cgroups, value);
		else if (!strcmp(name, "--mask")) push(o->mask, &o->masks, value);
		else if (!strcmp(name, "--keep")) push(o->keep, &o->keeps, value);
		else if (!strcmp(name, "--view")) o->view = value;
		else if (!strcmp(name, "--net")) o->net = value;
		else if (!strcmp(name, "--root")) o->root = value;
		else if (!strcmp(name, "--dev")) o->dev = value;
		else if (!strcmp(name, "--host")) o->host = value;
		else if (!strcmp(name, "--shm")) o->shm = value;
		else if (!strcmp(name, "--seccomp")) o->seccomp = value;
		else if (!strcmp(name, "--pid1")) o->pid1 = value;
		else if (!strcmp(name, "--life")) o->life = value;
		else if (!strcmp(name, "--cwd")) o->cwd = value;
		else if (!strcmp(name, "--kdat")) o->kdat = value;
		else if (!strcmp(name, "--result")) o->result = value;
		else if (!strcmp(name, "--drained")) o->drained = value;
		else if (!strcmp(name, "--init")) o->init = atoi(value);
		else if (!strcmp(name, "--env")) o->env = atoi(value);
		else if (!strcmp(name, "--tty")) o->tty = atoi(value);
		else {
			errno = EINVAL;
			die("unknown option %s", name);
		}
	}
}

/* ---- files -------------------------------------------------------------------------------------------------------- */

static void write_all(int fd, const char *data, size_t size)
{
	while (size) {
		ssize_t n = write(fd, data, size);
		if (n < 0 && errno == EINTR) continue;
		if (n <= 0) return;
		data += n;
		size -= n;
	}
}

/* The whole of a descriptor, with a NUL behind it. */
static char *slurp(int fd, size_t *size)
{
	size_t room = 65536, used = 0;
	char *data = malloc(room);
	for (;;) {
		ssize_t n = read(fd, data + used, room - used - 1);
		if (n < 0 && errno == EINTR) continue;
		if (n < 0) die("read");
		if (n == 0) break;
		used += n;
		if (used + 1 == room) data = realloc(data, room *= 2);
	}
	data[used] = 0;
	*size = used;
	return data;
}

static void copy_file(const char *from, const char *to)
{
	int in = open(from, O_RDONLY | O_CLOEXEC);
	if (in < 0) return;
	size_t size;
	char *data = slurp(in, &size);
	close(in);
	char temp[4096];
	/* Processes of several pid namespaces write here: a pid would not tell them apart. */
	snprintf(temp, sizeof temp, "%s.XXXXXX", to);
	int out = mkostemp(temp, O_CLOEXEC);
	if (out < 0) return;
	write_all(out, data, size);
	close(out);
	rename(temp, to);
	free(data);
}

/* ---- the way in --------------------------------------------------------------------------------------------------- */

static void join_cgroups(const struct options *o)
{
	for (int i = 0; i < o->cgroups; i++) {
		int fd = open(o->cgroup[i], O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, "0", 1) != 1) die("join %s", o->cgroup[i]);
		close(fd);
	}
}

static void close_from(unsigned int first)
{
	syscall(SYS_close_range, first, ~0U, 0);
}

static int open_or_die(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) die("open %s", path);
	return fd;
}

static int namespace_of(int pid, const char *kind)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, kind);
	return open_or_die(path);
}

/* A pid that is no computer's would lead back to the host. */
static void refuse_own(int fd, const char *kind)
{
	char path[64];
	struct stat theirs, own;
	snprintf(path, sizeof path, "/proc/self/ns/%s", kind);
	if (fstat(fd, &theirs) || stat(path, &own)) die("stat %s", path);
	if (theirs.st_ino == own.st_ino) {
		errno = EPERM;
		die("the %s namespace is the host's", kind);
	}
}

static void enter(int fd, int kind, const char *what)
{
	if (setns(fd, kind)) die("enter the %s namespace", what);
	close(fd);
}

/* What orb itself was started with must not be seen inside: signals, limits, the OOM killer's favour. */
static void reset_process(const char *oom_score)
{
	struct sigaction normal = {.sa_handler = SIG_DFL};
	for (int number = 1; number < NSIG; number++) sigaction(number, &normal, NULL);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	struct rlimit files = {OPEN_FILES, OPEN_FILES};
	setrlimit(RLIMIT_NOFILE, &files);
	struct rlimit core = {0, RLIM_INFINITY};
	setrlimit(RLIMIT_CORE, &core);
	umask(022);
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		write_all(fd, oom_score, strlen(oom_score));
		close(fd);
	}
}

/* Docker's default fourteen. */
static const int kept_capabilities[] = {
	CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP,
	CAP_NET_BIND_SERVICE, CAP_NET_RAW, CAP_SYS_CHROOT, CAP_MKNOD, CAP_AUDIT_WRITE, CAP_SETFCAP,
};

/*
 * The filter comes first: without no_new_privs, which would break sudo and su, installing it takes CAP_SYS_ADMIN.
 */
static void confine(const char *filter, size_t filter_size)
{
	if (filter_size) {
		struct sock_fprog program = {filter_size / sizeof(struct sock_filter), (struct sock_filter *)filter};
		if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) die("seccomp");
	}
	uint64_t mask = 0;
	for (size_t i = 0; i < sizeof kept_capabilities / sizeof *kept_capabilities; i++) mask |= 1ULL << kept_capabilities[i];
	for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (!(mask >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0)) die("drop capability %d", cap);
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {
		{(uint32_t)mask, (uint32_t)mask, 0},
		{(uint32_t)(mask >> 32), (uint32_t)(mask >> 32), 0},
	};
	if (syscall(SYS_capset, &header, data)) die("capset");
}

static char *read_filter(const struct options *o, size_t *size)
{
	*size = 0;
	if (!o->seccomp) return NULL;
	int fd = open_or_die(o->seccomp);
	char *data = slurp(fd, size);
	close(fd);
	return data;
}

static char **read_environment(const struct options *o)
{
	static char *nothing[] = {NULL};
	if (o->env < 0) return nothing;
	size_t size, count = 0;
	char *data = slurp(o->env, &size);
	close(o->env);
	for (size_t i = 0; i < size; i++) count += !data[i];
	char **list = calloc(count + 2, sizeof *list);
	char **next = list;
	for (char *entry = data; entry < data + size; entry += strlen(entry) + 1) *next++ = entry;
	return list;
}

/* ---- a computer's pid 1 ------------------------------------------------------------------------------------------- */

static void mount_or_die(const char *source, const char *target, const char *type, unsigned long flags, const char *data)
{
	if (mount(source, target, type, flags, data)) die("mount %s", target);
}

/*
 * A read-only /proc: no sysctl, sysrq or interrupt setting can be written, whoever asks. What leaks the host when it is
 * read lies under /dev/null.
 */
static void mount_proc(const struct options *o)
{
	mount_or_die("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	for (int i = 0; i < o->masks; i++)
		if (!access(o->mask[i], F_OK)) mount_or_die("/dev/null", o->mask[i], NULL, MS_BIND, NULL);
	mount_or_die(NULL, "/proc", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

static void mount_private_devices(const struct options *o)
{
	char size[64];
	snprintf(size, sizeof size, "mode=1777,size=%s", o->shm ? o->shm : "64m");
	const char *options = "newinstance,ptmxmode=0666,mode=0620,gid=5,max=" PTYS_MAX;
	mount_or_die("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, options);
	mount_or_die("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, size);
}

static void build_root(const struct options *o)
{
	char path[4096];
	mount_or_die(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	mount_or_die(o->root, o->root, NULL, MS_BIND | MS_REC, NULL);
	snprintf(path, sizeof path, "%s/dev", o->root);
	mount_or_die(o->dev, path, NULL, MS_BIND, NULL);
	mount_or_die(NULL, path, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL);
	if (chdir(o->root)) die("chdir %s", o->root);
	/* Same directory twice: the old root ends up on top of the new one and is detached, no place for it is needed. */
	if (syscall(SYS_pivot_root, ".", ".")) die("pivot_root");
	if (umount2(".", MNT_DETACH)) die("detach the old root");
	if (chdir("/")) die("chdir /");
	if (o->host && sethostname(o->host, strlen(o->host))) die("sethostname");
}

static void unmount_if_there(const char *target)
{
	if (umount2(target, MNT_DETACH) && errno != EINVAL) die("detach %s", target);
}

static void unmount_private(void)
{
	unmount_if_there("/proc");
	unmount_if_there("/dev/pts");
	unmount_if_there("/dev/shm");
}

/* /proc comes last, and is made read-only last. */
static int has_private_mounts(void)
{
	struct statfs info;
	return !statfs("/proc", &info) && info.f_type == PROC_MAGIC && info.f_flags & ST_RDONLY;
}

/*
 * The mounts that commands in the computer share, from the first command on: in a thousand computers where only agents
 * sleep they would cost hundreds of MB, as the kernel keeps account of each superblock in each memory cgroup.
 * @param guard the computer's mount namespace, which nobody inside can open before that, nor lock
 */
static void provide_private_mounts(const struct options *o, int guard)
{
	if (has_private_mounts()) return;
	if (flock(guard, LOCK_EX)) die("lock the computer's mounts");
	if (!has_private_mounts()) {
		unmount_private();
		mount_private_devices(o);
		mount_proc(o);
	}
	flock(guard, LOCK_UN);
}

static void idle(int signal)
{
	(void)signal;
}

/* Reaps whatever is orphaned inside. Never ends by itself: orb kills it, and with it everything in the computer. */
static void computer_main(void)
{
	struct sigaction wake = {.sa_handler = idle};
	sigaction(SIGCHLD, &wake, NULL);
	sigset_t all, none;
	sigfillset(&all);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &all, NULL);
	sigset_t child_only = all;
	sigdelset(&child_only, SIGCHLD);
	for (;;) {
		while (waitpid(-1, NULL, WNOHANG) > 0) continue;
		sigsuspend(&child_only);
	}
}

/* What ps shows: the command line names places on the host. */
static void rename_process(char **argv, const char *name)
{
	char *end = argv[0];
	for (char **word = argv; *word; word++) end = *word + strlen(*word);
	size_t room = end - argv[0];
	memset(argv[0], 0, room);
	strncpy(argv[0], name, room);
	prctl(PR_SET_NAME, name, 0, 0, 0);
}

static int boot(struct options *o, char **command_line)
{
	join_cgroups(o);
	int net = open_or_die(o->net);
	size_t filter_size;
	char *filter = read_filter(o, &filter_size);
	enter(net, CLONE_NEWNET, "network");
	if (unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID)) die("unshare");
	pid_t child = fork();
	if (child < 0) die("fork");
	if (child) {
		dprintf(1, "pid %d\n", child);
		return 0;
	}
	setsid();
	reset_process(OOM_SPARE);
	build_root(o);
	confine(filter, filter_size);
	/* Nobody inside may look into pid 1: its descriptors and memory stay closed to ptrace and /proc. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	rename_process(command_line, "orb-computer");
	write_all(1, "ready\n", 6);
	int null = open("/dev/null", O_RDWR);
	dup2(null, 0);
	dup2(null, 1);
	dup2(null, 2);
	close_from(3);
	computer_main();
	return 0;
}

/*
 * What is about to run inside may be the tenant's `#!/proc/self/exe`: this program, in his hands, and through
 * /proc/PID/exe the file that orb runs for all computers. So it goes there by way of a mount that nobody can write to,
 * nor change modes and owners.
 */
static void become_read_only(char **argv)
{
	struct statvfs self;
	if (statvfs("/proc/self/exe", &self)) die("look at /proc/self/exe");
	if (self.f_flag & ST_RDONLY) return;
	int fd = syscall(SYS_open_tree, AT_FDCWD, "/proc/self/exe", TREE_CLONE | O_CLOEXEC);
	struct mount_attributes read_only = {.set = MOUNT_READ_ONLY};
	if (fd < 0 || syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &read_only, sizeof read_only))
		die("mount /proc/self/exe");
	syscall(SYS_execveat, fd, "", argv, environ, AT_EMPTY_PATH);
	die("execute /proc/self/exe");
}

/* ---- an agent, a command ------------------------------------------------------------------------------------------ */

/*
 * Enters the computer's namespaces. The mount namespace comes last: with it the host's files are out of reach. The pid
 * namespace holds for children only, so the caller forks.
 */
static void enter_computer(const struct options *o)
{
	int net = namespace_of(o->init, "net"), pid = namespace_of(o->init, "pid"), uts = namespace_of(o->init, "uts");
	int ipc = namespace_of(o->init, "ipc"), mnt = namespace_of(o->init, "mnt");
	refuse_own(pid, "pid");
	refuse_own(mnt, "mnt");
	join_cgroups(o);
	enter(net, CLONE_NEWNET, "network");
	enter(uts, CLONE_NEWUTS, "uts");
	enter(ipc, CLONE_NEWIPC, "ipc");
	enter(pid, CLONE_NEWPID, "pid");
	enter(mnt, CLONE_NEWNS, "mount");
}

static int status_code(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int wait_for(pid_t child)
{
	int status;
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR) return EXIT_SETUP;
	return status_code(status);
}

/*
 * The first fork lands in the computer's pid namespace, the second opens the agent's own inside it; the one between
 * leaves, so that the agent is a child of the computer's pid 1.
 */
static int agent(struct options *o)
{
	size_t filter_size;
	char *filter = read_filter(o, &filter_size);
	char **environment = read_environment(o);
	enter_computer(o);
	pid_t middle = fork();
	if (middle < 0) die("fork");
	if (middle) return wait_for(middle);

	if (unshare(CLONE_NEWPID | CLONE_NEWNS)) die("unshare");
	pid_t child = fork();
	if (child < 0) die("fork");
	if (child) return 0;

	setsid();
	reset_process("0");
	mount_or_die(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	/* The computer's own are of no use to this pid namespace, and each mount costs time in every checkpoint. */
	unmount_private();
	mount_proc(o);
	mount_private_devices(o);
	int null = open("/dev/null", O_RDWR);
	if (null < 0) die("open /dev/null");
	dup2(null, 0);
	close_from(3);
	confine(filter, filter_size);
	if (chdir(o->cwd ? o->cwd : "/")) die("chdir %s", o->cwd);
	int count = 0;
	while (o->argv[count]) count++;
	char **argv = calloc(count + 3, sizeof *argv);
	char name[64];
	snprintf(name, sizeof name, o->life ? "pid1=%s" : "pid1", o->life);
	argv[0] = "orb-agent";
	argv[1] = name;
	memcpy(argv + 2, o->argv, count * sizeof *argv);
	execve(o->pid1, argv, environment);
	die("execute %s", o->pid1);
	return 0;
}

/* ---- a command's terminal ----------------------------------------------------------------------------------------- */

#define HANGUP_MS 5000       /* what does not end when its terminal has gone is killed after this */
#define RELAY_BYTES 65536
#define LAST_WORDS (1 << 20) /* written before the command's end and passed on after it; what it left behind writes on */

struct relay {
	int socket, master, sizes, ended;
	char in[RELAY_BYTES], out[RELAY_BYTES];
	size_t in_start, in_end, out_start, out_end;
};

/* One packet each. */
struct size {
	uint16_t columns, rows;
};

static void take_size(int sizes, int master)
{
	struct size size;
	if (read(sizes, &size, sizeof size) != sizeof size) return;
	struct winsize window = {.ws_col = size.columns, .ws_row = size.rows};
	ioctl(master, TIOCSWINSZ, &window);
}

/*
 * The terminal is one of the computer's own, so that its programs can name it. The slave stays open here: without it the
 * master would have nothing to say, again and again, while no program has the terminal open.
 */
static int open_terminal(int *slave)
{
	int locked = 0, master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (master < 0 || ioctl(master, TIOCSPTLCK, &locked)) die("open a terminal");
	*slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	struct termios settings;
	if (*slave < 0 || tcgetattr(*slave, &settings)) die("open a terminal");
	settings.c_iflag |= IUTF8;
	tcsetattr(*slave, TCSANOW, &settings);
	return master;
}

/* Passes on what is there. Returns 0 when the other side has gone. */
static int fill(int fd, char *buffer, size_t *start, size_t *end)
{
	if (*start < *end) return 1;
	ssize_t n = read(fd, buffer, RELAY_BYTES);
	*start = 0;
	*end = n > 0 ? n : 0;
	return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static int empty(int fd, const char *buffer, size_t *start, const size_t *end)
{
	if (*start == *end) return 1;
	ssize_t n = write(fd, buffer + *start, *end - *start);
	if (n > 0) *start += n;
	return n >= 0 || errno == EAGAIN || errno == EINTR;
}

/* What was written before the command ended; it may not all be wanted any more. */
static void relay_rest(struct relay *r)
{
	for (size_t passed = 0; passed < LAST_WORDS; passed += r->out_end) {
		while (r->out_start < r->out_end) {
			struct pollfd set = {r->socket, POLLOUT, 0};
			if (poll(&set, 1, -1) < 0 && errno != EINTR) return;
			if (!empty(r->socket, r->out, &r->out_start, &r->out_end)) return;
		}
		if (!fill(r->master, r->out, &r->out_start, &r->out_end) || r->out_end == 0) return;
	}
}

/*
 * Between the terminal and the socket until the command ends or whoever has the socket is gone, be it orb itself. As much
 * is read as the other side takes: a program that writes more has to wait. Returns 0 if it is to be hung up.
 */
static int relay(struct relay *r)
{
	for (;;) {
		int hears = r->in_start == r->in_end, says = r->out_start == r->out_end;
		struct pollfd set[4] = {
			{r->socket, (hears ? POLLIN : 0) | (says ? 0 : POLLOUT), 0},
			{r->master, (says ? POLLIN : 0) | (hears ? 0 : POLLOUT), 0},
			{r->sizes, POLLIN, 0},
			{r->ended, POLLIN, 0},
		};
		if (poll(set, 4, -1) < 0) {
			if (errno == EINTR) continue;
			die("poll");
		}
		if (set[2].revents & POLLIN) take_size(r->sizes, r->master);
		else if (set[2].revents) r->sizes = -1;
		if (set[0].revents & (POLLHUP | POLLERR)) return 0;
		if (set[0].revents & POLLIN && !fill(r->socket, r->in, &r->in_start, &r->in_end)) return 0;
		if (set[1].revents & POLLIN) fill(r->master, r->out, &r->out_start, &r->out_end);
		if (set[1].revents & POLLHUP) r->in_start = r->in_end;
		empty(r->master, r->in, &r->in_start, &r->in_end);
		if (!empty(r->socket, r->out, &r->out_start, &r->out_end)) return 0;
		if (set[3].revents) {
			relay_rest(r);
			return 1;
		}
	}
}

static int run_terminal(pid_t command, int master, int slave, int sizes)
{
	static struct relay r;
	r = (struct relay){.socket = 0, .master = master, .sizes = sizes, .ended = syscall(SYS_pidfd_open, command, 0)};
	if (r.ended < 0) die("watch the command");
	signal(SIGPIPE, SIG_IGN);
	if (fcntl(r.socket, F_SETFL, O_NONBLOCK)) die("fcntl");
	if (!relay(&r)) {
		close(master);
		close(slave);
		struct pollfd end = {r.ended, POLLIN, 0};
		if (poll(&end, 1, HANGUP_MS) == 0) kill(command, SIGKILL);
	}
	return wait_for(command);
}

/* In the computer's pid namespace, whose /proc it mounts. */
static void make_private_mounts(const struct options *o, int guard)
{
	if (has_private_mounts()) return;
	pid_t child = fork();
	if (child < 0) die("fork");
	if (!child) {
		provide_private_mounts(o, guard);
		_exit(0);
	}
	if (wait_for(child)) _exit(EXIT_SETUP);
}

static int exec_command(struct options *o)
{
	size_t filter_size;
	char *filter = read_filter(o, &filter_size);
	char **environment = read_environment(o);
	int guard = namespace_of(o->init, "mnt");
	enter_computer(o);
	int slave = -1, master = -1;
	if (o->tty >= 0) {
		make_private_mounts(o, guard);
		master = open_terminal(&slave);
		take_size(o->tty, master);
	}
	pid_t child = fork();
	if (child < 0) die("fork");
	if (child && o->tty >= 0) return run_terminal(child, master, slave, o->tty);
	if (child) {
		/* The pipes belong to the command: while this process held them, their end would not be seen. */
		int null = open("/dev/null", O_RDWR);
		if (null >= 0) {
			dup2(null, 0);
			dup2(null, 1);
		}
		return wait_for(child);
	}
	setsid();
	provide_private_mounts(o, guard);
	reset_process("0");
	if (o->tty >= 0) {
		if (ioctl(slave, TIOCSCTTY, 0)) die("controlling terminal");
		for (int fd = 0; fd < 3; fd++) dup2(slave, fd);
	}
	close_from(3);
	confine(filter, filter_size);
	/* Without its other side a terminal is of no use to anybody. */
	if (o->tty >= 0) prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	/* A directory that the user has removed must not shut him out. */
	if (chdir(o->cwd) && chdir("/")) die("chdir %s", o->cwd);
	environ = environment;
	execvp(o->argv[0], o->argv);
	die("%s", o->argv[0]);
	return 0;
}

/* ---- the host without its computers ------------------------------------------------------------------------------- */

/* Whether the paths are the same, or one lies below the other. */
static int on_one_way(const char *a, const char *b)
{
	size_t shorter = strlen(a) < strlen(b) ? strlen(a) : strlen(b);
	const char *longer = strlen(a) < strlen(b) ? b : a;
	return !strncmp(a, b, shorter) && (shorter == 1 || !longer[shorter] || longer[shorter] == '/');
}

/* Spaces and the like are octal in the table, proc_pid_mountinfo(5). */
static void unescape(char *text)
{
	char *to = text;
	for (; *text; text++) {
		unsigned int code;
		if (*text == '\\' && sscanf(text + 1, "%3o", &code) == 1) {
			*to++ = code;
			text += 3;
		} else {
			*to++ = *text;
		}
	}
	*to = 0;
}

static int below_tmp(const char *path)
{
	return !strncmp(path, "/tmp/", 5);
}

static void make_directories(char *path)
{
	for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		if (mkdir(path, 0700) && errno != EEXIST) die("mkdir %s", path);
		*slash = '/';
	}
	if (mkdir(path, 0700) && errno != EEXIST) die("mkdir %s", path);
}

/*
 * criu makes and removes directories in /tmp at each restore. On a disk that frees blocks with a discard each of those
 * waits until all that is being written is there, which may be the whole image of a second ago.
 */
static void keep_temporary_files_in_memory(const struct options *o)
{
	int tree[MAX_LIST];
	char *path[MAX_LIST];
	int moved = 0;
	for (int i = 0; i < o->keeps; i++) {
		char *real = realpath(o->keep[i], NULL);
		if (!real || !below_tmp(real)) continue;
		tree[moved] = syscall(SYS_open_tree, AT_FDCWD, real, TREE_CLONE | TREE_RECURSIVE | O_CLOEXEC);
		if (tree[moved] < 0) die("open %s", real);
		path[moved++] = real;
	}
	mount_or_die("tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700,size=16m");
	for (int i = 0; i < moved; i++) {
		make_directories(path[i]);
		if (syscall(SYS_move_mount, tree[i], "", AT_FDCWD, path[i], TREE_ITSELF)) die("mount %s", path[i]);
	}
}

/* Nothing that is mounted later gets in here, and nothing stays that only others need: they could not unmount it for good. */
static int view(struct options *o)
{
	if (unshare(CLONE_NEWNS)) die("unshare");
	mount_or_die(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	size_t size;
	char *line, *rest = slurp(open_or_die("/proc/self/mountinfo"), &size);
	while ((line = strsep(&rest, "\n"))) {
		char path[4096];
		if (sscanf(line, "%*s %*s %*s %*s %4095s", path) != 1) continue;
		unescape(path);
		int kept = 0;
		for (int i = 0; i < o->keeps; i++) kept |= on_one_way(path, o->keep[i]);
		/* What lay below one that is gone is gone as well. */
		if (!kept) umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW);
	}
	/* criu gives a file that it binds the flags of where it comes from, and this one is shared by all computers. */
	mount_or_die(o->dev, o->dev, NULL, MS_BIND, NULL);
	mount_or_die(NULL, o->dev, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL);
	keep_temporary_files_in_memory(o);
	write_all(1, "ready\n", 6);
	char byte;
	while (read(0, &byte, 1) > 0) continue;
	return 0;
}

/*
 * Into a copy of the host's mounts that has of all computers only this one's: a copy of those of a thousand computers
 * takes longer than all else that criu does.
 */
static void enter_view(const struct options *o)
{
	int root = syscall(SYS_open_tree, AT_FDCWD, o->root, TREE_CLONE | TREE_RECURSIVE | O_CLOEXEC);
	if (root < 0) die("open %s", o->root);
	char *target = realpath(o->root, NULL);
	if (!target) die("find %s", o->root);
	enter(open_or_die(o->view), CLONE_NEWNS, "mount");
	if (unshare(CLONE_NEWNS)) die("unshare");
	mount_or_die(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	if (below_tmp(target)) make_directories(target);
	if (syscall(SYS_move_mount, root, "", AT_FDCWD, target, TREE_ITSELF)) die("mount %s", target);
	free(target);
	close(root);
}

/* ---- criu --------------------------------------------------------------------------------------------------------- */

/* Takes the room for a result on the disk before criu may fill that: an image without its result counts for nothing. */
static int reserve_result(const char *file)
{
	if (!file) return -1;
	char temp[4096];
	snprintf(temp, sizeof temp, "%s.part", file);
	int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, "----\n", RESULT_BYTES) != RESULT_BYTES) die("write %s", temp);
	return fd;
}

static void record_result(const char *file, int fd, int code)
{
	if (!file) return;
	char temp[4096], text[RESULT_BYTES + 1];
	snprintf(temp, sizeof temp, "%s.part", file);
	snprintf(text, sizeof text, "%4d\n", code);
	if (pwrite(fd, text, RESULT_BYTES, 0) == RESULT_BYTES) rename(temp, file);
	close(fd);
}

/*
 * Only criu itself is in the agent's cgroup while it restores, so that the pages are charged there. In a lazy restore the
 * kernel must not give it huge pages: what lies beside a page that criu fills in would count as there, be zero, and never be
 * fetched. criu gives the agent's own setting back once all its memory is watched.
 */
static pid_t start_criu(const struct options *o)
{
	pid_t child = fork();
	if (child < 0) die("fork");
	if (child) return child;
	if (o->pages && prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)) die("disable huge pages");
	join_cgroups(o);
	signal(SIGPIPE, SIG_DFL);
	execv(o->argv[0], o->argv);
	die("execute %s", o->argv[0]);
	return 0;
}

/* The page daemon, on its way to listen; `status` gets the descriptor that says when it does. */
static pid_t start_pages(char **argv, int *status)
{
	int listens[2];
	if (pipe2(listens, O_CLOEXEC)) die("pipe");
	pid_t child = fork();
	if (child < 0) die("fork");
	if (!child) {
		signal(SIGPIPE, SIG_DFL);
		if (dup2(listens[1], STATUS_FD) < 0 || fcntl(STATUS_FD, F_SETFD, 0)) die("dup2");
		execv(argv[0], argv);
		die("execute %s", argv[0]);
	}
	close(listens[1]);
	*status = listens[0];
	return child;
}

/* Lets criu, which waits for somebody to write its configuration, find an empty one. Gone: whoever waits for it sees. */
static void open_gate(pid_t criu)
{
	int fd;
	siginfo_t info = {0};
	while ((fd = open(GATE, O_WRONLY | O_NONBLOCK | O_CLOEXEC)) < 0) {
		if (errno != ENXIO) die("open %s", GATE);
		if (waitid(P_PID, criu, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid) return;
		nanosleep(&(struct timespec){0, 100000}, NULL);
	}
	close(fd);
}

/* What ps, and orb when it comes back, take for what is going on: from now on no command but the page daemon's. */
static void forget_words(char **argv)
{
	for (; *argv; argv++) memset(*argv, 0, strlen(*argv));
}

/*
 * Runs criu and, beside it, the page daemon; writes down how either ended, sends the same as a byte each. Without its
 * daemon a restore would wait for pages for ever.
 */
static void run_criu(struct options *o, int answer)
{
	int status = -1, result = reserve_result(o->result), drained = reserve_result(o->drained);
	pid_t pages = 0;
	if (o->pages) {
		if (mkfifo(GATE, 0600)) die("mkfifo %s", GATE);
		pages = start_pages(o->pages, &status);
	}
	pid_t criu = start_criu(o), ended;
	if (pages) {
		unsigned char byte;
		if (read(status, &byte, 1) == 1) open_gate(criu);
		else kill(criu, SIGKILL);
	}
	int code;
	while (criu || pages) {
		ended = waitpid(-1, &code, 0);
		if (ended < 0 && errno == EINTR) continue;
		if (ended < 0) die("wait");
		unsigned char byte = code = status_code(code);
		if (ended == pages) {
			pages = 0;
			record_result(o->drained, drained, code);
			if (criu && code) kill(criu, SIGKILL);
			else if (!criu) write_all(answer, (char *)&byte, 1);
		}
		if (ended == criu) {
			criu = 0;
			record_result(o->result, result, code);
			if (code && pages) kill(pages, SIGKILL);
			write_all(answer, (char *)&byte, 1);
			if (o->pages) forget_words(o->argv);
			if (o->pages && !pages) write_all(answer, (char *)&byte, 1);
		}
	}
}

/*
 * criu runs in the computer's pid namespace, in a mount namespace of its own with that namespace's /proc and with a
 * tmpfs on /run, the only kind of place where it keeps what it learnt about the kernel. In the computer's network
 * namespace, too: what it takes for its own it neither saves nor makes, and saving would begin with a walk through all
 * connections that the host tracks.
 */
static int criu(struct options *o)
{
	for (char **word = o->argv; *word; word++) {
		if (strcmp(*word, "--")) continue;
		*word = NULL;
		o->pages = word + 1;
		break;
	}
	int pid = namespace_of(o->init, "pid"), net = open_or_die(o->net);
	signal(SIGPIPE, SIG_IGN);
	enter(pid, CLONE_NEWPID, "pid");
	enter(net, CLONE_NEWNET, "network");
	int answer[2];
	if (pipe2(answer, O_CLOEXEC)) die("pipe");
	pid_t middle = fork();
	if (middle < 0) die("fork");
	if (middle) {
		/* Not waited for: taking its mount namespace down takes longer than criu did. */
		unsigned char code;
		close(answer[1]);
		if (read(answer[0], &code, 1) != 1) return EXIT_SETUP;
		if (!o->pages || code) return code;
		forget_words(o->argv);
		write_all(1, "done\n", 5);
		return read(answer[0], &code, 1) == 1 ? code : EXIT_SETUP;
	}

	close(answer[0]);
	int null = open_or_die("/dev/null");
	dup2(null, 1);
	close(null);
	enter_view(o);
	mount_or_die("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_or_die("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700");
	if (o->kdat) copy_file(o->kdat, "/run/criu.kdat");
	if (o->shm) {
		char data[64];
		snprintf(data, sizeof data, "mode=1777,size=%s", o->shm);
		if (mkdir(FRESH_SHM, 0700)) die("mkdir " FRESH_SHM);
		mount_or_die("shm", FRESH_SHM, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, data);
	}
	run_criu(o, answer[1]);
	if (o->kdat && access(o->kdat, F_OK)) copy_file("/run/criu.kdat", o->kdat);
	return 0;
}

/* ---- an agent's pid 1 --------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t child_ended, forward[NSIG];
static int log_fd = -1;
static long log_size;

struct stream {
	int fd;
	char digit;
	size_t used;
	char line[LOG_LINE_BYTES];
};

static void on_child(int number)
{
	(void)number;
	child_ended = 1;
}

static void on_signal(int number)
{
	forward[number] = 1;
}

static void open_log(void)
{
	mkdir("/var", 0755);
	mkdir("/var/log", 0755);
	mkdir(LOG_DIR, 0755);
	log_fd = open(LOG_FILE, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644);
	struct stat info;
	log_size = log_fd >= 0 && !fstat(log_fd, &info) ? info.st_size : 0;
}

static void rotate_log(void)
{
	if (log_fd >= 0) close(log_fd);
	rename(LOG_FILE ".1", LOG_FILE ".2");
	rename(LOG_FILE, LOG_FILE ".1");
	open_log();
}

/* One line of the log: `<unix ms> <1|2> <text>`. A full disk loses the line, never the agent. */
static void write_line(struct stream *s)
{
	static char out[LOG_LINE_BYTES + 64];
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	int head = snprintf(out, 64, "%lld %c ", (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000, s->digit);
	memcpy(out + head, s->line, s->used);
	out[head + s->used] = '\n';
	size_t size = head + s->used + 1;
	s->used = 0;
	if (log_size + (long)size > LOG_FILE_BYTES) rotate_log();
	if (log_fd >= 0) write_all(log_fd, out, size);
	log_size += size;
}

/* Takes what is there; returns 0 at the end of the stream. */
static int take(struct stream *s)
{
	static char data[65536];
	ssize_t n = read(s->fd, data, sizeof data);
	if (n < 0) return errno == EAGAIN || errno == EINTR ? -1 : 0;
	for (ssize_t i = 0; i < n; i++) {
		if (data[i] == '\n') {
			write_line(s);
			continue;
		}
		if (s->used == LOG_LINE_BYTES) write_line(s);
		s->line[s->used++] = data[i];
	}
	return n > 0;
}

static void drain(struct stream *s)
{
	while (s->fd >= 0 && take(s) > 0) continue;
	if (s->used) write_line(s);
}

static void record_exit(int code, const char *life)
{
	char text[96];
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	int fd = open(EXIT_FILE ".part", O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
	if (fd < 0) return;
	long long ms = (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
	write_all(fd, text, snprintf(text, sizeof text, "%d %lld %.32s\n", code, ms, life));
	fsync(fd);
	close(fd);
	rename(EXIT_FILE ".part", EXIT_FILE);
}

/*
 * Runs the program, writes its output to the log and its exit code to a file, reaps, passes signals on. Its standard
 * output and error are orb's until the program is known to have been executed: `started` or `failed <errno>`.
 */
static int pid1(char **argv, const char *life)
{
	static struct stream out = {.digit = '1'}, err = {.digit = '2'};
	int a[2], b[2], report[2];
	unlink(EXIT_FILE);
	open_log();
	if (pipe2(a, O_CLOEXEC) || pipe2(b, O_CLOEXEC) || pipe2(report, O_CLOEXEC)) die("pipe");

	sigset_t all, none;
	sigfillset(&all);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &all, NULL);
	struct sigaction child_action = {.sa_handler = on_child}, signal_action = {.sa_handler = on_signal};
	sigaction(SIGCHLD, &child_action, NULL);
	static const int passed[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT};
	for (size_t i = 0; i < sizeof passed / sizeof *passed; i++) sigaction(passed[i], &signal_action, NULL);

	pid_t child = fork();
	if (child < 0) die("fork");
	if (!child) {
		setsid();
		dup2(a[1], 1);
		dup2(b[1], 2);
		struct sigaction normal = {.sa_handler = SIG_DFL};
		for (int number = 1; number < NSIG; number++) sigaction(number, &normal, NULL);
		sigprocmask(SIG_SETMASK, &none, NULL);
		execvp(argv[0], argv);
		int error = errno;
		write_all(report[1], (char *)&error, sizeof error);
		_exit(127);
	}
	close(a[1]);
	close(b[1]);
	close(report[1]);
	int error = 0;
	if (read(report[0], &error, sizeof error) == sizeof error) {
		dprintf(1, "failed %d\n", error);
		_exit(127);
	}
	close(report[0]);
	dup2(0, 2);
	write_all(1, "started\n", 8);
	dup2(0, 1);

	fcntl(out.fd = a[0], F_SETFL, O_NONBLOCK);
	fcntl(err.fd = b[0], F_SETFL, O_NONBLOCK);
	for (;;) {
		struct pollfd set[2] = {{out.fd, POLLIN, 0}, {err.fd, POLLIN, 0}};
		struct timespec limit = {0, PARTIAL_LINE_MS * 1000000L};
		int n = ppoll(set, 2, out.used || err.used ? &limit : NULL, &none);
		if (n == 0) {
			if (out.used) write_line(&out);
			if (err.used) write_line(&err);
		}
		if (n > 0) {
			if (set[0].revents && !take(&out)) out.fd = -1;
			if (set[1].revents && !take(&err)) err.fd = -1;
		}
		/* More than one can have come: the next one must not take the place of the last. */
		for (int number = 1; number < NSIG; number++) {
			if (!forward[number]) continue;
			forward[number] = 0;
			kill(child, number);
		}
		if (!child_ended) continue;
		child_ended = 0;
		pid_t ended;
		int status, ended_status = 0, over = 0;
		while ((ended = waitpid(-1, &status, WNOHANG)) > 0) {
			if (ended != child) continue;
			over = 1;
			ended_status = status;
		}
		if (!over) continue;
		drain(&out);
		drain(&err);
		record_exit(status_code(ended_status), life);
		return status_code(ended_status);
	}
}

/* ---- read-ahead --------------------------------------------------------------------------------------------------- */

static int warm(const char *dir)
{
	DIR *list = opendir(dir);
	if (!list) return 0;
	struct dirent *entry;
	while ((entry = readdir(list))) {
		if (entry->d_type != DT_REG) continue;
		int fd = openat(dirfd(list), entry->d_name, O_RDONLY | O_CLOEXEC);
		if (fd < 0) continue;
		posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED);
		close(fd);
	}
	return 0;
}

/* What others wait for at the disk at most: some milliseconds. All of an image at once, by fsync alone, is half a second. */
#define FLUSH_BYTES (4 << 20)

static void flush_file(int fd)
{
	struct stat info;
	if (fstat(fd, &info)) die("stat");
	for (off_t at = 0; at < info.st_size; at += FLUSH_BYTES) {
		sync_file_range(fd, at, FLUSH_BYTES, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
	}
	if (fsync(fd)) die("fsync");
}

/*
 * All that was written to a file system, and then its journal: until ext4 has emptied that, it holds on to every block of
 * its own that was changed lately, and no page of these can be given back.
 */
static void flush_mount(const char *path)
{
	char above[PATH_MAX];
	struct stat mount, parent;
	snprintf(above, sizeof above, "%s/..", path);
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT) return;
	if (fd < 0 || fstat(fd, &mount) || stat(above, &parent)) die("open %s", path);
	if (mount.st_dev != parent.st_dev) {
		if (syncfs(fd)) die("sync %s", path);
		uint32_t flags = 0;
		/* Kernels before 5.14 do not know it. It is about memory, not about what is stored. */
		ioctl(fd, EMPTY_JOURNAL, &flags);
	}
	close(fd);
}

static int flush(const char *path)
{
	DIR *list = opendir(path);
	if (!list) die("open %s", path);
	struct dirent *entry;
	while ((entry = readdir(list))) {
		if (entry->d_type != DT_REG) continue;
		int fd = openat(dirfd(list), entry->d_name, O_RDONLY | O_CLOEXEC);
		if (fd < 0 && errno == ENOENT) continue;
		if (fd < 0) die("open %s/%s", path, entry->d_name);
		flush_file(fd);
		close(fd);
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct options o = {0};
	if (argc >= 3 && !strcmp(argv[1], "pid1")) return pid1(argv + 2, "0");
	if (argc >= 3 && !strncmp(argv[1], "pid1=", 5)) return pid1(argv + 2, argv[1] + 5);
	if (argc == 3 && !strcmp(argv[1], "warm")) return warm(argv[2]);
	if ((argc == 3 || argc == 4) && !strcmp(argv[1], "flush")) {
		if (argc == 4) flush_mount(argv[3]);
		return flush(argv[2]);
	}
	if (argc < 3) {
		dprintf(2, "orb-init is run by orb\n");
		return EXIT_SETUP;
	}
	parse(&o, argv + 2);
	if (!strcmp(argv[1], "boot")) return boot(&o, argv);
	if (!strcmp(argv[1], "view")) return view(&o);
	if (!o.argv || !*o.argv) {
		errno = EINVAL;
		die("no command");
	}
	if (!strcmp(argv[1], "agent") || !strcmp(argv[1], "exec")) become_read_only(argv);
	if (!strcmp(argv[1], "agent")) return agent(&o);
	if (!strcmp(argv[1], "exec")) return exec_command(&o);
	if (!strcmp(argv[1], "criu")) return criu(&o);
	errno = EINVAL;
	die("%s", argv[1]);
}
