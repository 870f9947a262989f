/* waves.h -- see waves.c. */
#pragma once

/* argv: key=value options of the configuration, without the program's name. Returns an exit status. */
int bench_waves(int argc, char **argv);
