/* nova-jail: see jail.h for what it is and --help for how to use it. */
#include "jail.h"


int main(int argc, char **argv)
{
	static struct options options;

	options_parse(&options, argc, argv);
	return options.check ? check_print() : supervise(&options);
}
