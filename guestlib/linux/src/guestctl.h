/*
 * guestctl.h: regions and channels from the command line.
 */
#ifndef LINUX_GUESTCTL_H
#define LINUX_GUESTCTL_H

int guestctl_main(int argc, char **argv);

#endif
